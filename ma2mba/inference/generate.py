"""Greedy generation from a session, one token at a time, and text that grows with it."""

from collections.abc import Iterator, Sequence

from tokenizers import Tokenizer

from ma2mba.inference.session import Session
from ma2mba.model.conversation import END

REPEAT = 5
UNFINISHED = "\ufffd"


def generate(session: Session, max_tokens: int) -> Iterator[int]:
    """Yield token ids as they are chosen, the likeliest each time.

    Ends at `<|endoftext|>` (not yielded), after `max_tokens`, or when the last five tokens, in a row, stand earlier in
    the output: a loop (the paper's rule for evaluation).
    """
    end = session.tokenizer.token_to_id(END)
    written: list[int] = []
    while len(written) < max_tokens:
        if written:
            session.feed_text(written[-1:])
        token = int(session.logits().argmax())
        if token == end:
            return
        written.append(token)
        yield token
        if repeats(written):
            return


def repeats(written: Sequence[int], length: int = REPEAT) -> bool:
    """Whether the last `length` tokens, in a row, also stand earlier in `written` (they may overlap themselves)."""
    tail = list(written[-length:])
    starts = range(len(written) - length)
    return any(list(written[i : i + length]) == tail for i in starts)


class TextStream:
    """Tokens in, text out as soon as it is certain: a character whose bytes span tokens appears once it is whole."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = self._read = 0

    def push(self, token: int) -> str:
        """The text that this token completes, "" when it ends inside a character."""
        self._ids.append(token)
        return self._new(final=False)

    def finish(self) -> str:
        """What was held back: bytes that never became a character, as U+FFFD."""
        return self._new(final=True)

    def _new(self, *, final: bool) -> str:
        # Decoding from the last emitted piece on, not from the new token: decoders strip or join by what stands before.
        before = self.tokenizer.decode(self._ids[self._start : self._read])
        text = self.tokenizer.decode(self._ids[self._start :])
        if len(text) <= len(before) or (text.endswith(UNFINISHED) and not final):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return text[len(before) :]
