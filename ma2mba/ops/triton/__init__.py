"""Kernels of a GPU. mamba-ssm's `__init__` imports transformers, which takes seconds: only its kernels are needed."""

from ma2mba.ops.lazy_package import defer_init

defer_init("mamba_ssm")
