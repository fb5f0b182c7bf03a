"""Launch settings of mamba-ssm's kernels: measured ones for known GPUs and sizes, else the results of its autotuning.

mamba-ssm autotunes over settings for an A100, which takes a minute and a half in every process.
"""

from typing import Any

import torch
import triton
from mamba_ssm.ops.triton import ssd_bmm, ssd_chunk_scan, ssd_chunk_state, ssd_combined, ssd_state_passing
from triton.runtime import Autotuner

MODULES = (ssd_bmm, ssd_chunk_scan, ssd_chunk_state, ssd_combined, ssd_state_passing)
LISTS = {
    kernel: kernel.configs for module in MODULES for kernel in vars(module).values() if isinstance(kernel, Autotuner)
}
"""mamba-ssm's own lists of settings to try."""


def _tile(rows: int, columns: int, warps: int, stages: int, **more: int) -> dict[str, Any]:
    return {"BLOCK_SIZE_M": rows, "BLOCK_SIZE_N": columns, "num_warps": warps, "num_stages": stages, **more}


HOPPER = {
    ssd_bmm._bmm_chunk_fwd_kernel: _tile(128, 64, 4, 2, BLOCK_SIZE_K=64),
    ssd_bmm._bmm_chunk_bwd_kernel: _tile(64, 64, 4, 3, BLOCK_SIZE_CS=64),
    ssd_chunk_state._chunk_state_fwd_kernel: _tile(64, 128, 4, 4, BLOCK_SIZE_K=32),
    ssd_chunk_state._chunk_state_bwd_db_kernel: _tile(64, 128, 4, 3),
    ssd_chunk_scan._chunk_scan_fwd_kernel: _tile(64, 64, 4, 2, BLOCK_SIZE_K=32),
    ssd_chunk_scan._chunk_scan_bwd_dstates_kernel: _tile(64, 128, 4, 4, BLOCK_SIZE_K=32),
    ssd_chunk_scan._chunk_scan_bwd_dc_kernel: _tile(64, 128, 4, 3),
    ssd_chunk_scan._chunk_scan_bwd_dcb_kernel: _tile(64, 64, 8, 3),
    ssd_chunk_scan._chunk_scan_bwd_ddAcs_stable_kernel: _tile(64, 32, 4, 3),
    ssd_combined._chunk_scan_chunk_state_bwd_dx_kernel: _tile(64, 64, 4, 2, BLOCK_SIZE_K=32),
    ssd_state_passing._state_passing_fwd_kernel: {"BLOCK_SIZE": 256, "num_warps": 2, "num_stages": 2},
    ssd_state_passing._state_passing_bwd_kernel: {"BLOCK_SIZE": 256, "num_warps": 2, "num_stages": 2},
}
"""The best of about 250 settings on one H200 (triton 3.6, mamba-ssm 2.3.2) for the sizes of the paper, MEASURED_FOR, at
16,384 tokens and 80 heads. The scan takes 427 us instead of 536, the gradient of x 552 us instead of 728."""
MEASURED_FOR = (64, 128, 256)
"""Head width, state size, block."""


def choose_settings(width: int, states: int, block: int, device: torch.device) -> None:
    """Set every kernel's measured setting on a Hopper GPU and for MEASURED_FOR, else mamba-ssm's list to try."""
    measured = torch.cuda.get_device_capability(device) == (9, 0) and (width, states, block) == MEASURED_FOR
    for kernel, tried in LISTS.items():
        settings = HOPPER.get(kernel) if measured else None
        kernel.configs = tried if settings is None else [_config(settings, tried[0].pre_hook)]
        kernel.cache.clear()


def _config(settings: dict[str, Any], pre_hook: Any) -> triton.Config:
    blocks = {name: value for name, value in settings.items() if name.startswith("BLOCK")}
    return triton.Config(blocks, num_warps=settings["num_warps"], num_stages=settings["num_stages"], pre_hook=pre_hook)
