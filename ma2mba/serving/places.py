"""A fixed number of places in one batch, which sequences take and leave at any token.

B rows of the batch, W rows that write (the others read their prompts), V vocabulary, K alternatives.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
from tokenizers import Tokenizer
from torch import Tensor

from ma2mba.inference.choice import choose, copied
from ma2mba.inference.decoder import Slots
from ma2mba.inference.generate import on_the_way
from ma2mba.inference.sampling import Draws, Sampling
from ma2mba.inference.session import blank_states
from ma2mba.model.layer import State
from ma2mba.model.video_ma2mba import VideoMa2mba


class Token(NamedTuple):
    """A token that a sequence has chosen. `value`: its log-probability if the sequence wants it, else its logit."""

    id: int
    value: float
    alternatives: tuple[tuple[int, float], ...] = ()


class Writer(Protocol):
    """A sequence in a place: how it chooses tokens.

    alternatives   how many likely tokens are named with each token
    """

    @property
    def sampling(self) -> Sampling: ...
    @property
    def draws(self) -> Draws: ...
    @property
    def alternatives(self) -> int: ...


class Places:
    """The places and the recurrent states of the sequences in them. One thread uses it."""

    def __init__(self, model: VideoMa2mba, tokenizer: Tokenizer, count: int):
        self._sizes = [1 << power for power in range((count - 1).bit_length())] + [count]
        self._slots = Slots(model, count, self._sizes)
        self._on_gpu = model.language_model.lm_head.weight.device.type == "cuda"
        self._vocabulary = tokenizer.get_vocab_size()
        self._taken: list[Writer | None] = [None] * count
        self._to_read: dict[int, deque[int]] = {}
        self._logits_BV: Tensor | None = None
        self.blank, _ = blank_states(model)
        for row in range(count):
            self._load(row, self.blank)

    @property
    def free(self) -> int:
        return self._taken.count(None)

    @property
    def writers(self) -> list[Writer]:
        return [writer for writer in self._taken if writer]

    def join(self, writer: Writer, states: Sequence[State], prompt: Iterable[int]) -> None:
        """Give a free place to a sequence that continues `states` by a prompt of at least one token."""
        row = self._taken.index(None)
        self._load(row, states)
        self._taken[row], self._to_read[row] = writer, deque(prompt)

    def leave(self, writer: Writer) -> None:
        """Free the place of a sequence; nothing if it has none."""
        for row, other in enumerate(self._taken):
            if other is writer:
                self._taken[row] = None
                self._to_read.pop(row, None)

    def clear(self) -> None:
        """Free all places after a failure. What their sequences have read is lost."""
        self._taken = [None] * len(self._taken)
        self._to_read.clear()
        self._logits_BV = None

    @torch.no_grad()
    def step(self) -> list[tuple[Writer, Token]]:
        """Advance all sequences by a token. Return the tokens of those that have read their prompts."""
        self._close_gaps()
        count = self._top()
        rows = [row for row in range(count) if self._taken[row] and row not in self._to_read]
        writers = [writer for writer in (self._taken[row] for row in rows) if writer]
        given = [self._to_read[row].popleft() if row in self._to_read else 0 for row in range(count)]
        device = self._slots.device
        ids_B = copied(torch.tensor(given), device)
        wait = None
        if rows:
            ids_W, wait = self._choose(rows, writers)
            ids_B = ids_W if len(rows) == count else ids_B.index_copy(0, copied(torch.tensor(rows), device), ids_W)
        # The next step starts before the tokens are looked at: meanwhile the host joins text.
        self._logits_BV = self._slots.step(ids_B)
        self._to_read = {row: rest for row, rest in self._to_read.items() if rest}
        return list(zip(writers, wait(), strict=True)) if wait else []

    def _choose(self, rows: Sequence[int], writers: Sequence[Writer]) -> tuple[Tensor, Callable[[], list[Token]]]:
        """Return ids_W of the rows that write, and a function that waits for their tokens."""
        assert self._logits_BV is not None
        logits_WV = self._logits_BV[:, : self._vocabulary]
        if len(rows) < len(logits_WV):
            logits_WV = logits_WV[copied(torch.tensor(rows), logits_WV.device)]
        ids_W = choose(logits_WV, [writer.sampling for writer in writers], [writer.draws for writer in writers])
        most = min(max(writer.alternatives for writer in writers), self._vocabulary)
        if most or any(writer.sampling.logprobs for writer in writers):
            logits_WV = logits_WV.float().log_softmax(-1)
        numbers = [ids_W, logits_WV.gather(1, ids_W[:, None])[:, 0]]
        if most:
            values_WK, ids_WK = logits_WV.topk(most)
            numbers += [*ids_WK.unbind(1), *values_WK.unbind(1)]
        arrived = on_the_way(numbers)

        def wait() -> list[Token]:
            found = zip(*arrived(), strict=True)
            return [_token(numbers, most, writer.alternatives) for numbers, writer in zip(found, writers, strict=True)]

        return ids_W, wait

    def _top(self) -> int:
        """Return how many rows there are up to the last taken one."""
        return max((row + 1 for row, writer in enumerate(self._taken) if writer), default=0)

    def _size(self, rows: int) -> int:
        """Return how many rows a step of `rows` rows advances."""
        return next(size for size in self._sizes if size >= rows) if self._on_gpu else rows

    def _close_gaps(self) -> None:
        """Move the last rows into gaps if the step then advances fewer rows."""
        live = len(self.writers)
        while live and self._size(self._top()) > self._size(live):
            self._move(self._top() - 1, self._taken.index(None))

    def _move(self, row: int, to: int) -> None:
        for layer in self._slots.layers:
            layer.load(to, layer.state(row))
        self._taken[to], self._taken[row] = self._taken[row], None
        if row in self._to_read:
            self._to_read[to] = self._to_read.pop(row)
        else:
            assert self._logits_BV is not None
            self._logits_BV[to] = self._logits_BV[row]

    def _load(self, row: int, states: Sequence[State]) -> None:
        for layer, state in zip(self._slots.layers, states, strict=True):
            layer.load(row, state)


def _token(numbers: Sequence[float], most: int, wanted: int) -> Token:
    id, value, *others = numbers
    pairs = zip(map(int, others[:most]), others[most:], strict=True)
    return Token(int(id), value, tuple(pairs)[:wanted])
