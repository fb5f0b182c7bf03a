"""The memory model of the paper (arXiv 2411.19460, Eq. 12-16 and Table 7), to compare with measurements.

M(l, s) = (L S / l) C_L + (L S / s) C_S + l s C_grid + s C_state, in bf16 elements, with a layer-axis checkpoint every l
layers and a sequence-axis checkpoint every s tokens. `constants` returns Table 7 exactly. The other schedules
checkpoint one axis at most: L S C_grid without checkpoints, (L S / l) C_L + l S C_grid with one every l layers.

Table 3 of the paper lists peaks. M differs from them as follows, in GiB (2^30 bytes, 2 bytes an element), for 2.7B:

- MA-GC, with l and s at the minimum of M: equal to the printed digit at 2^10 and 2^11 tokens (0.7, 1.1). From there on
  M is lower: by 14% at 2^12, by 30% at 2^15, by 43% at 2^19 (24.0 instead of 42.2).
- No checkpoint: 28-29% lower at every length (30.7 instead of 42.6 at 2^14).
- Every layer: 68-69% lower (21.9 instead of 69.3 at 2^16). Every sqrt(L) layers: 48-54% lower (35.7 instead of 69.3 at
  2^17).

M leaves out the fp32 residual stream between layers, the inputs of the norms, and the whole-length tensors before and
behind the layers. It counts the fp32 recurrent state as bf16. With 10^9 bytes for a GB, M grows by 7% and fewer figures
match (0.8 and 1.2 instead of 0.7 and 1.1).
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt

from ma2mba.model.mamba2_config import Mamba2Config

ELEMENT = 2


@dataclass(frozen=True)
class Constants:
    """Table 7, in bf16 elements.

    C_L      for each token of a layer-axis checkpoint.
    C_S      for each sequence-axis checkpoint of a layer.
    C_grid   for each token and layer of the cell that is recomputed.
    C_state  for each token of the layer that runs backward.
    """

    C_L: int
    C_S: int
    C_grid: int
    C_state: int


PEAKS_GB = {
    "off": (2.7, 5.4, 10.7, 21.4, 42.6),
    "every layer": (1.1, 2.2, 4.4, 8.7, 17.4, 34.7, 69.3),
    "sqrt": (0.6, 1.1, 2.2, 4.4, 8.7, 17.3, 34.6, 69.3),
    "MA-GC": (0.7, 1.1, 1.8, 2.7, 4.2, 6.9, 10.5, 17.2, 25.9, 42.2),
}
"""Table 3 as printed, measured by its authors: 2.7B, from 2^10 tokens on."""


def constants(config: Mamba2Config) -> Constants:
    """Return the constants of Table 7 for a backbone."""
    convolved = config.d_inner + 2 * config.d_state
    states = config.d_inner * config.d_state
    return Constants(
        C_L=config.d_model,
        C_S=(config.d_conv - 1) * convolved + states,
        C_grid=(2 * config.d_inner + 2 * config.d_state + config.heads) + config.d_inner,
        C_state=convolved + states,
    )


def elements(config: Mamba2Config, tokens: int, group: float, s: float) -> float:
    """Return M(l = group, s) in bf16 elements."""
    c = constants(config)
    LS = config.n_layer * tokens
    return LS / group * c.C_L + LS / s * c.C_S + group * s * c.C_grid + s * c.C_state


def minimise(config: Mamba2Config, tokens: int) -> tuple[int, int]:
    """Return the l (1 to L) and the s (a multiple of the scan's block) with the least M."""
    steps = range(config.ssd_block, max(tokens, config.ssd_block) + 1, config.ssd_block)
    return min(
        ((group, s) for group in range(1, config.n_layer + 1) for s in _near_best(config, tokens, group, steps)),
        key=lambda pair: elements(config, tokens, *pair),
    )


def _near_best(config: Mamba2Config, tokens: int, group: int, steps: range) -> list[int]:
    """Return the steps on either side of the s with the least M for one l, where L S C_S / s^2 = l C_grid + C_state."""
    c = constants(config)
    s = (config.n_layer * tokens * c.C_S / (group * c.C_grid + c.C_state)) ** 0.5
    at = min(max(int(s) // config.ssd_block, 1), len(steps))
    return [steps[at - 1], steps[min(at, len(steps) - 1)]]


def memory(config: Mamba2Config, tokens: int, schedule: str) -> int:
    """Return the bytes of a schedule of Table 3, one of the keys of PEAKS_GB."""
    c, L = constants(config), config.n_layer

    def every(group: int) -> float:
        return L * tokens / group * c.C_L + group * tokens * c.C_grid

    schedules: dict[str, Callable[[], float]] = {
        "off": lambda: L * tokens * c.C_grid,
        "every layer": lambda: every(1),
        "sqrt": lambda: every(isqrt(L)),
        "MA-GC": lambda: elements(config, tokens, *minimise(config, tokens)),
    }
    return round(schedules[schedule]() * ELEMENT)
