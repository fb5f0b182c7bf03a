"""Greedy generation from a session, one token at a time, and the text that grows with it."""

from collections.abc import Iterator, Sequence

from tokenizers import Tokenizer

from ma2mba.inference.session import Session
from ma2mba.model.conversation import END

REPEAT = 5
UNFINISHED = "\ufffd"


def generate(session: Session, max_tokens: int) -> Iterator[int]:
    """Yield token ids greedily: the most likely token each time.

    Stops at `<|endoftext|>` (not yielded), after `max_tokens`, or when the last five tokens in a row appear earlier in
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
    """Return True if the last `length` tokens in a row also appear earlier in `written` (overlap is allowed)."""
    tail = list(written[-length:])
    starts = range(len(written) - length)
    return any(list(written[i : i + length]) == tail for i in starts)


class TextStream:
    """Turn tokens into text as soon as the text is certain: a character that spans tokens appears once it is whole."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = self._read = 0

    def push(self, token: int) -> str:
        """Return the text that this token completes, "" if the token ends inside a character."""
        self._ids.append(token)
        return self._new(final=False)

    def finish(self) -> str:
        """Return the text that was held back: bytes that never became a character, as U+FFFD."""
        return self._new(final=True)

    def _new(self, *, final: bool) -> str:
        # Decode from the last emitted piece, not from the new token: decoders strip or join by the preceding text.
        before = self.tokenizer.decode(self._ids[self._start : self._read])
        text = self.tokenizer.decode(self._ids[self._start :])
        if len(text) <= len(before) or (text.endswith(UNFINISHED) and not final):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return text[len(before) :]
