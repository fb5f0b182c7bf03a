"""How a sequence becomes chunks, and how the outputs of the chunks become one tensor."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ma2mba.magc.cell import Gradients, Values
from ma2mba.magc.weights import version


class ChunkIO(Protocol):
    """Input and output of one run. `cut` and `join` serve forward; `spread`, `collect` and `done` serve backward."""

    def cut(self, x: Tensor | None) -> Sequence[Values]:
        """Return the chunks."""

    def join(self, outputs: Sequence[Values]) -> Tensor:
        """Return the outputs of all chunks as one tensor, y."""

    def check(self, when: str) -> None:
        """Raise RuntimeError if a chunk has changed in place since `cut`. `when` completes the message."""

    def spread(self, d_y: Tensor | None) -> list[Gradients]:
        """Return the gradient of each chunk's output from the gradient of y."""

    def collect(self, d_chunks: Sequence[Gradients]) -> Tensor | None:
        """Return the gradient of x from the gradients of the chunks."""

    def done(self) -> None:
        """Report that all gradients are computed. Autograd has received none of them yet."""


class Tokens:
    """Cuts x (batch, tokens, width) along its tokens and concatenates y along its tokens."""

    def __init__(self, tokens: int, chunk_tokens: int):
        self.lengths = [min(chunk_tokens, tokens - start) for start in range(0, tokens, chunk_tokens)]

    def cut(self, x: Tensor | None) -> Sequence[Values]:
        assert x is not None
        return [(chunk,) for chunk in x.split(self.lengths, dim=1)]

    def check(self, when: str) -> None:
        """Do nothing: the chunks are views of x, which autograd checks."""

    def join(self, outputs: Sequence[Values]) -> Tensor:
        return torch.cat([values[0] for values in outputs], dim=1)

    def spread(self, d_y: Tensor | None) -> list[Gradients]:
        if d_y is None:
            return [(None,)] * len(self.lengths)
        return [(chunk,) for chunk in d_y.split(self.lengths, dim=1)]

    def collect(self, d_chunks: Sequence[Gradients]) -> Tensor | None:
        known = next((d for (d,) in d_chunks if d is not None), None)
        if known is None:
            return None
        batch, _, width = known.shape
        filled = [
            known.new_zeros(batch, length, width) if d is None else d
            for (d,), length in zip(d_chunks, self.lengths, strict=True)
        ]
        return torch.cat(filled, dim=1)

    def done(self) -> None:
        """Do nothing: `checkpoint` has no callback."""


class Summed:
    """Takes the chunks as the caller has cut them, and sums the scalar that each chunk gives."""

    def __init__(self, chunks: Sequence[Values], when_done: Callable[[], None] | None = None):
        self.chunks, self._when_done = chunks, when_done
        self._versions: list[list[int]] = []

    def cut(self, x: Tensor | None) -> Sequence[Values]:
        self._versions = self._now()
        return self.chunks

    def check(self, when: str) -> None:
        for i, (before, now) in enumerate(zip(self._versions, self._now(), strict=True)):
            if before != now:
                raise RuntimeError(
                    f"chunk {i} was changed in place {when}. Backward reads it again: change it after backward"
                )

    def _now(self) -> list[list[int]]:
        """Return the version of every tensor. A sequence that makes its chunks when it is asked has none yet."""
        if not isinstance(self.chunks, (list, tuple)):
            return []
        return [[version(tensor) for tensor in chunk] for chunk in self.chunks]

    def join(self, outputs: Sequence[Values]) -> Tensor:
        return torch.stack([values[0] for values in outputs]).sum()

    def spread(self, d_y: Tensor | None) -> list[Gradients]:
        return [(d_y,)] * len(self.chunks)

    def collect(self, d_chunks: Sequence[Gradients]) -> Tensor | None:
        """Return None: there is no x."""
        return None

    def done(self) -> None:
        if self._when_done:
            self._when_done()
