"""Write the answers of several sessions together, one token of each at a time.

B sequences of the batch, V vocabulary.
"""

import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ma2mba.inference.answer import Answer, Writing
from ma2mba.inference.choice import choose
from ma2mba.inference.decoder import Decoder
from ma2mba.inference.sampling import Sampling
from ma2mba.inference.session import Session
from ma2mba.model.layer import State
from ma2mba.model.plain_text import plain_text


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
        draws = [row.writing.draws for row in self._rows]
        sessions = [row.session for row in self._rows]
        logits_BV = torch.stack([session.logits() for session in sessions])
        model = sessions[0].model
        decoder = Decoder(model, [session.require_states() for session in sessions])
        while any(rows):
            ids_B = choose(logits_BV, [self.sampling] * len(draws), draws)
            values = on_the_way([ids_B, self._values(logits_BV, ids_B)])
            # The next step starts before the tokens are looked at: meanwhile the host joins text.
            logits_BV = decoder.step(ids_B)[:, : logits_BV.shape[1]]
            for slot, (token, value) in enumerate(zip(*values(), strict=True)):
                row = rows[slot]
                if row is None:
                    continue
                if piece := row.writing.add(int(token), value):
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
    """One session of a batch, and the answer that it writes."""

    def __init__(self, number: int, session: Session, sampling: Sampling, began: float):
        self.number, self.session = number, session
        self.writing = Writing(session.tokenizer, sampling, began)
        self.answer = self.writing.answer

    def close(self, states: list[State]) -> None:
        """Let the session go on from `states`, after the last token that was chosen: what was shown, and END.

        A stop string was read, but not shown: then read the shown text again, from before the answer.
        """
        end = self.writing.end
        if self.answer.reason == "stop":
            self.session.feed_text([*plain_text(self.session.tokenizer).ids(self.answer.text), end])
            return
        self.session.jump(states)
        if self.answer.reason != "end":
            self.session.feed_text([end])


def on_the_way(numbers: Sequence[Tensor]) -> Callable[[], list[list[float]]]:
    """Start to copy tensors of one shape to the host, as fp64. Return a function that waits for them.

    On a GPU it waits for these tensors alone, not for work that was queued after them.
    """
    all_of = torch.stack([tensor.double() for tensor in numbers])
    if all_of.device.type != "cuda":
        return all_of.tolist
    found, done = all_of.to("cpu", non_blocking=True), torch.cuda.Event()
    done.record()

    def wait() -> list[list[float]]:
        done.synchronize()
        return found.tolist()

    return wait
