"""The unit in which memory is shown, and the share of a device's memory that a plan may use."""

GIB = 2**30
USABLE = 0.94
"""CUDA's context and the gaps between the allocator's blocks take the rest."""
