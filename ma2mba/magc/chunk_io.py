"""The two ends of a run: how a sequence becomes chunks, and how the chunks' outputs become one tensor."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ma2mba.magc.cell import Gradients, Values


class ChunkIO(Protocol):
    def cut(self, x: Tensor | None) -> Sequence[Values]:
        """The chunks."""

    def join(self, outputs: Sequence[Values]) -> Tensor:
        """The outputs of all chunks as one tensor."""

    def spread(self, d_y: Tensor | None) -> list[Gradients]:
        """The gradient of the joined output for each chunk."""

    def collect(self, d_chunks: Sequence[Gradients]) -> Tensor | None:
        """The gradient of x."""

    def done(self) -> None:
        """Backward is computed; nothing of it has been handed over."""


class Tokens:
    """x (batch, tokens, width) is cut along its tokens, and y joined along them."""

    def __init__(self, tokens: int, chunk_tokens: int):
        self.lengths = [min(chunk_tokens, tokens - start) for start in range(0, tokens, chunk_tokens)]

    def cut(self, x: Tensor | None) -> Sequence[Values]:
        assert x is not None
        return [(chunk,) for chunk in x.split(self.lengths, dim=1)]

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
        parts = [
            known.new_zeros(batch, length, width) if d is None else d
            for (d,), length in zip(d_chunks, self.lengths, strict=True)
        ]
        return torch.cat(parts, dim=1)

    def done(self) -> None:
        """Nobody is told."""


class Summed:
    """The caller cuts the sequence; the scalar of each chunk is summed."""

    def __init__(self, chunks: Sequence[Values], when_done: Callable[[], None] | None = None):
        self.chunks, self._when_done = chunks, when_done

    def cut(self, x: Tensor | None) -> Sequence[Values]:
        return self.chunks

    def join(self, outputs: Sequence[Values]) -> Tensor:
        return torch.stack([values[0] for values in outputs]).sum()

    def spread(self, d_y: Tensor | None) -> list[Gradients]:
        return [(d_y,)] * len(self.chunks)

    def collect(self, d_chunks: Sequence[Gradients]) -> Tensor | None:
        return None

    def done(self) -> None:
        if self._when_done:
            self._when_done()
