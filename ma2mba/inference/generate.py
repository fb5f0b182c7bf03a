"""Write the answers of several sessions together, one token of each at a time.

B sequences of the batch, V vocabulary.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ma2mba.errors import UserError
from ma2mba.inference.choice import choose
from ma2mba.inference.decoder import Decoder
from ma2mba.inference.sampling import Sampling
from ma2mba.inference.session import Session
from ma2mba.inference.text_stream import StopStrings, TextStream
from ma2mba.model.conversation import END
from ma2mba.model.layer import State
from ma2mba.model.plain_text import plain_text

REPEAT = 5
Reason = Literal["end", "length", "stop", "repetition"]


@dataclass
class Answer:
    """What a session has written.

    text           the text so far: whole characters, without stop strings
    tokens         the ids of its tokens, without `<|endoftext|>`; with reason "stop", the stop string's tokens too
    reason         why it ended: "end" (`<|endoftext|>`), "length", "stop", "repetition"; None while it is written
    logprobs       for each token its log-probability, if `Sampling.logprobs` asks for them
    seed           the seed of its draws
    first_token    seconds from `began` of `Batch` until the first token was known
    seconds        seconds from `began` until the answer ended
    """

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    reason: Reason | None = None
    logprobs: list[float] = field(default_factory=list)
    seed: int | None = None
    first_token: float = 0.0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float | None:
        """The speed after the first token; None for an answer of one token."""
        steps = len(self.tokens) - (self.reason != "end")
        after = self.seconds - self.first_token
        return steps / after if steps > 0 and after > 0 else None


class Batch:
    """Sessions that have read their questions, and the answers that they write."""

    def __init__(self, sessions: Sequence[Session], sampling: Sampling, began: float | None = None):
        """All sessions have the same model. `began`: when the questions were asked (`time.monotonic`; default: now)."""
        if any(session.model is not sessions[0].model for session in sessions):
            raise ValueError("sessions of a batch share one model")
        began = time.monotonic() if began is None else began
        self.sampling = sampling
        self._rows = [_Row(number, session, sampling, began) for number, session in enumerate(sessions)]
        self.answers = [row.answer for row in self._rows]

    def pieces(self, *, keep: bool = False) -> Iterator[tuple[int, str]]:
        """Yield (number of the session, text) as soon as text is certain, until all answers have ended.

        With `keep`, each session has then read its answer as it was shown, and `<|endoftext|>`: the next turn may
        follow. Otherwise the sessions stay as they are. Raise UserError if the model's output is not finite.
        """
        rows: list[_Row | None] = list(self._rows)
        draws = [row.draws for row in self._rows]
        sessions = [row.session for row in self._rows]
        logits_BV = torch.stack([session.logits() for session in sessions])
        model = sessions[0].model
        decoder = Decoder(model, [session.require_states() for session in sessions])
        while any(rows):
            ids_B = choose(logits_BV, self.sampling, draws)
            values = _on_the_way(ids_B, self._values(logits_BV, ids_B))
            # The next step starts before the tokens are looked at: meanwhile the host joins text.
            logits_BV = decoder.step(ids_B)[:, : logits_BV.shape[1]]
            for slot, (token, value) in enumerate(zip(*values(), strict=True)):
                row = rows[slot]
                if row is None:
                    continue
                if piece := row.add(int(token), value):
                    yield row.number, piece
                if row.answer.reason:
                    rows[slot] = None
                    if keep:
                        row.close(decoder.states(slot))
            live = [slot for slot, row in enumerate(rows) if row]
            if 0 < len(live) <= len(rows) // 2:  # halving, so that the states are copied rarely
                decoder = Decoder(model, [decoder.states(slot) for slot in live])
                logits_BV = logits_BV[live]
                rows, draws = [rows[slot] for slot in live], [draws[slot] for slot in live]

    def write(self, *, keep: bool = False) -> list[Answer]:
        """Write all answers to their ends, as `pieces` does."""
        for _ in self.pieces(keep=keep):
            pass
        return self.answers

    def _values(self, logits_BV: Tensor, ids_B: Tensor) -> Tensor:
        """Return for each chosen token its log-probability if wanted, else its logit: NaN shows in both."""
        of_B = logits_BV.float().log_softmax(-1) if self.sampling.logprobs else logits_BV
        return of_B.gather(1, ids_B[:, None])[:, 0]


class _Row:
    """One session of a batch: its draws, its answer, and when the answer ends."""

    def __init__(self, number: int, session: Session, sampling: Sampling, began: float):
        self.number, self.session, self.sampling, self._began = number, session, sampling, began
        self.draws = sampling.draws()
        self.answer = Answer(seed=self.draws.seed if sampling.heat else None)
        end = session.tokenizer.token_to_id(END)
        assert end is not None, "load_tokenizer refuses a tokenizer without it"
        self._end = end
        self._text = TextStream(session.tokenizer)
        self._stops = StopStrings(sampling.stop)
        self._seen: set[tuple[int, ...]] = set()

    def add(self, token: int, value: float) -> str:
        """Add a token to the answer, and return the text that is certain now. Set `answer.reason` if it ends here."""
        if value != value:
            raise UserError("the model's output is not a number (NaN). Use the weights of another checkpoint")
        answer = self.answer
        answer.seconds = time.monotonic() - self._began
        if not answer.tokens:
            answer.first_token = answer.seconds
        if token == self._end:
            return self._finish("end")
        answer.tokens.append(token)
        if self.sampling.logprobs:
            answer.logprobs.append(value)
        piece = self._stops.push(self._text.push(token))
        answer.text += piece
        if self._stops.found:
            answer.reason = "stop"
        elif self.sampling.repetition_stop and self._repeats():
            piece += self._finish("repetition")
        elif len(answer.tokens) >= self.sampling.max_tokens:
            piece += self._finish("length")
        return piece

    def close(self, states: list[State]) -> None:
        """Let the session go on from `states`, after the last token that was chosen: what was shown, and END.

        A stop string was read, but not shown: then read the shown text again, from before the answer.
        """
        if self.answer.reason == "stop":
            self.session.feed_text(plain_text(self.session.tokenizer).ids(self.answer.text) + [self._end])
            return
        self.session.jump(states)
        if self.answer.reason != "end":
            self.session.feed_text([self._end])

    def _finish(self, reason: Reason) -> str:
        piece = self._stops.push(self._text.finish(), final=True)
        self.answer.text += piece
        self.answer.reason = "stop" if self._stops.found else reason
        return piece

    def _repeats(self) -> bool:
        """Return True if the last REPEAT tokens in a row also appear earlier in the answer (overlap is allowed)."""
        tail = tuple(self.answer.tokens[-REPEAT:])
        if len(tail) < REPEAT:
            return False
        repeats = tail in self._seen
        self._seen.add(tail)
        return repeats


def _on_the_way(ids_B: Tensor, values_B: Tensor) -> Callable[[], list[list[float]]]:
    """Start to copy ids and values to the host. Return a function that waits for both.

    On a GPU it waits for these tensors alone, not for work that was queued after them.
    """
    both = torch.stack([ids_B.double(), values_B.double()])
    if both.device.type != "cuda":
        return both.tolist
    copied, done = both.to("cpu", non_blocking=True), torch.cuda.Event()
    done.record()

    def wait() -> list[list[float]]:
        done.synchronize()
        return copied.tolist()

    return wait
