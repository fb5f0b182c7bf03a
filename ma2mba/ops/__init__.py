"""The two recurrent operations of Mamba-2, with state in and out."""

from ma2mba.ops.conv import causal_conv
from ma2mba.ops.ssd import ssd_scan

__all__ = ["causal_conv", "ssd_scan"]
