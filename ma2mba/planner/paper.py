"""The memory model of the paper (arXiv 2411.19460, Eq. 12-16 and Table 7), for comparison with what is measured.

M(l, s) = (L S / l) C_L + (L S / s) C_S + l s C_grid + s C_state, in bf16 elements, with a layer-axis checkpoint every l
layers and a sequence-axis checkpoint every s tokens. `constants` gives Table 7 exactly. The other schedules keep one
axis: no checkpoint L S C_grid, every l layers (L S / l) C_L + l S C_grid.

Table 3 of the paper is a table of peaks. Against them, in GiB (2^30 bytes, 2 bytes an element), for 2.7B:

- MA-GC, l and s from the minimum of M: 2^10 and 2^11 tokens are reproduced to the printed digit (0.7, 1.1). M is lower
  from there on: by 14% at 2^12, by 30% at 2^15, by 43% at 2^19 (24.0 for 42.2).
- no checkpoint: 28-29% lower at every length (30.7 for 42.6 at 2^14).
- every layer: 68-69% lower (21.9 for 69.3 at 2^16); every sqrt(L) layers: 48-54% lower (35.7 for 69.3 at 2^17).

What M leaves out is the fp32 residual stream between layers, the fp32 recurrent state (counted as one bf16 element
each), the inputs of the norms, and the whole-length tensors before and behind the layers. With 10^9 bytes for a GB the
figures of M grow by 7% and fewer of them match (0.8 and 1.2 for 0.7 and 1.1).
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt

ELEMENT = 2
SCAN_BLOCK = 256


@dataclass(frozen=True)
class Shape:
    """The sizes of a Mamba-2 backbone."""

    layers: int
    d_model: int
    d_state: int = 128
    headdim: int = 64
    expand: int = 2
    d_conv: int = 4

    @property
    def d_inner(self) -> int:
        return self.expand * self.d_model


@dataclass(frozen=True)
class Constants:
    """Table 7, in bf16 elements: per token of a layer-axis checkpoint, per sequence-axis checkpoint of a layer, per
    token and layer of the cell that is recomputed, per token of the layer that runs backward."""

    C_L: int
    C_S: int
    C_grid: int
    C_state: int


SHAPES = {"370m": Shape(48, 1024), "1.3b": Shape(48, 2048), "2.7b": Shape(64, 2560)}

PEAKS_GB = {
    "off": (2.7, 5.4, 10.7, 21.4, 42.6),
    "every layer": (1.1, 2.2, 4.4, 8.7, 17.4, 34.7, 69.3),
    "sqrt": (0.6, 1.1, 2.2, 4.4, 8.7, 17.3, 34.6, 69.3),
    "MA-GC": (0.7, 1.1, 1.8, 2.7, 4.2, 6.9, 10.5, 17.2, 25.9, 42.2),
}
"""Table 3 as printed, 2.7B, from 2^10 tokens on: measured by its authors, shown beside what M gives."""


def constants(shape: Shape) -> Constants:
    """Table 7 from a backbone's sizes."""
    convolved = shape.d_inner + 2 * shape.d_state
    states = shape.d_inner * shape.d_state
    heads = shape.d_inner // shape.headdim
    return Constants(
        C_L=shape.d_model,
        C_S=(shape.d_conv - 1) * convolved + states,
        C_grid=(2 * shape.d_inner + 2 * shape.d_state + heads) + shape.d_inner,
        C_state=convolved + states,
    )


def elements(shape: Shape, tokens: int, group: float, s: float) -> float:
    """M(l = group, s), bf16 elements."""
    c = constants(shape)
    LS = shape.layers * tokens
    return LS / group * c.C_L + LS / s * c.C_S + group * s * c.C_grid + s * c.C_state


def minimise(shape: Shape, tokens: int) -> tuple[int, int]:
    """l (1 to L) and s (a multiple of the scan's block) with the least M."""
    steps = range(SCAN_BLOCK, max(tokens, SCAN_BLOCK) + 1, SCAN_BLOCK)
    return min(
        ((group, s) for group in range(1, shape.layers + 1) for s in _near_best(shape, tokens, group, steps)),
        key=lambda pair: elements(shape, tokens, *pair),
    )


def _near_best(shape: Shape, tokens: int, group: int, steps: range) -> list[int]:
    """The steps on either side of where M is least for one l: LS C_S / s^2 = l C_grid + C_state."""
    c = constants(shape)
    s = (shape.layers * tokens * c.C_S / (group * c.C_grid + c.C_state)) ** 0.5
    at = min(max(int(s) // SCAN_BLOCK, 1), len(steps))
    return [steps[at - 1], steps[min(at, len(steps) - 1)]]


def memory(shape: Shape, tokens: int, schedule: str) -> int:
    """Bytes of one of the schedules of Table 3: the keys of PEAKS_GB."""
    c, L = constants(shape), shape.layers

    def every(group: int) -> float:
        return L * tokens / group * c.C_L + group * tokens * c.C_grid

    schedules: dict[str, Callable[[], float]] = {
        "off": lambda: L * tokens * c.C_grid,
        "every layer": lambda: every(1),
        "sqrt": lambda: every(isqrt(L)),
        "MA-GC": lambda: elements(shape, tokens, *minimise(shape, tokens)),
    }
    return round(schedules[schedule]() * ELEMENT)
