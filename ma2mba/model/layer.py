"""What a recurrent layer of your own must have: the class `RecurrentLayer` (docs/extending.md has an example).

B batch, T tokens, D model width.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from ma2mba.errors import UserError
from ma2mba.ops.selftest import Row

State = tuple[Tensor, ...]
"""The recurrent state of one layer. Only the layer reads it: its tensors may have any shape, batch first or not."""


class LayerFlops(NamedTuple):
    """Operations of a layer's forward for one token: products with weight matrices, and of activations alone."""

    matrices: float
    scan: float


class LayerStep(Protocol):
    """One layer's recurrent states of some sequences. A call advances the first B of them by one token.

    in_place   True if a call changes the same memory each time, so that a CUDA graph may record it
    """

    in_place: bool

    def __call__(self, x_BD: Tensor) -> Tensor:
        """Return x_BD after the layer, for the next token of the first B sequences. May overwrite x_BD."""

    def load(self, row: int, state: State) -> None:
        """Copy the state of one sequence, of batch size 1, into row `row`."""

    def state(self, row: int) -> State:
        """Return a copy of the state of row `row`, of batch size 1."""


class PlainStep:
    """The step of a layer without a step of its own: one call of `forward` for each sequence."""

    in_place = False

    def __init__(self, layer: "RecurrentLayer", rows: int):
        self._layer, self._states = layer, list[State]([()] * rows)

    def __call__(self, x_BD: Tensor) -> Tensor:
        after = [self._layer(x_D[None, None], state) for x_D, state in zip(x_BD, self._states, strict=False)]
        self._states[: len(after)] = [state for _, state in after]
        return torch.cat([x_11D[0] for x_11D, _ in after])

    def load(self, row: int, state: State) -> None:
        self._states[row] = state

    def state(self, row: int) -> State:
        return self._states[row]


class RecurrentLayer(nn.Module, ABC):
    """A layer with its residual as a pure step: the state is an argument and a result, never an attribute.

    The class is built with the model's `BackboneConfig`. The residual stream x_BTD is in fp32 or wider, whatever the
    dtype of the weights. A call may have any number of tokens, also 0.

    A layer may also have two methods that spare MA-GC work when it recomputes the layer:

        remember(x_BTD, state) -> (x_BTD, state, memo)    as forward, without gradients; memo is a tensor or None
        recall(x_BTD, state, memo) -> (x_BTD, state)      as forward, with gradients, at less cost
    """

    @abstractmethod
    def forward(self, x_BTD: Tensor, state: State) -> tuple[Tensor, State]:
        """Return x after the layer, and the state after its last token. `state` is the one before its first token."""

    @abstractmethod
    def initial_state(self, x_BTD: Tensor) -> State:
        """Return the state at the start of a sequence, for the batch size of x, on the device of the weights."""

    @abstractmethod
    def flops(self) -> LayerFlops:
        """Count the matrix products of forward for one token; a multiplication and an addition are two operations."""

    def open_step(self, rows: int) -> LayerStep:
        """Return an object that advances `rows` sequences by one token a call. Load a state into each row first."""
        return PlainStep(self, rows)

    def longest_call(self, rows: int) -> int | None:
        """Return the most tokens that one call of the GPU kernels takes for `rows` rows. None means no limit."""
        return None

    def split(self, group: ProcessGroup) -> "RecurrentLayer":
        """Return this layer, with the same parameters, as a step that all ranks of a process group take together.

        Each rank brings its slice of the tokens, in rank order; a slice may be empty. States are the same on every
        rank, and so are their gradients. The gradient of a parameter is this rank's share. Raises UserError for a
        layer that cannot be split.
        """
        raise UserError(
            f"parallel.sequence: {type(self).__name__} cannot share a sequence among ranks. Set parallel.sequence=1"
        )

    def scale_init(self, depth: int) -> None:
        """Scale the initial weights of this layer, which is one of `depth` layers."""

    def check_kernels(self, device: torch.device) -> list[Row]:
        """Compare the kernels of this layer on a device with plain torch. A layer without kernels returns no rows."""
        return []
