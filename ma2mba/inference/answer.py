"""The answer of one sequence as it grows token by token: its text, and when and why it ends."""

import time
from dataclasses import dataclass, field
from typing import Literal

from tokenizers import Tokenizer

from ma2mba.errors import UserError
from ma2mba.inference.sampling import Sampling
from ma2mba.inference.text_stream import StopStrings, TextStream
from ma2mba.model.plain_text import END

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


class Writing:
    """One answer while it is written: its draws, its text, and when it ends."""

    def __init__(self, tokenizer: Tokenizer, sampling: Sampling, began: float):
        self.sampling, self._began = sampling, began
        self.draws = sampling.draws()
        self.answer = Answer(seed=self.draws.seed if sampling.heat else None)
        end = tokenizer.token_to_id(END)
        assert end is not None, "load_tokenizer refuses a tokenizer without it"
        self.end = end
        self._text = TextStream(tokenizer)
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
        if token == self.end:
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
