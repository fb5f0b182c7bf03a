"""The text that grows with the tokens: whole characters only, and nothing of a stop string."""

from collections.abc import Sequence

from tokenizers import Tokenizer

UNFINISHED = "\ufffd"


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


class StopStrings:
    """Passes text on until a stop string appears. Text that may be the beginning of a stop string is held back."""

    def __init__(self, stops: Sequence[str]):
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, text: str, *, final: bool = False) -> str:
        """Return the text that is certain. With `final`, nothing more follows, so nothing is held back."""
        self._held += text
        starts = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if starts:
            self.found, certain = True, min(starts)
        else:
            certain = len(self._held) if final else self._certain()
        passed, self._held = self._held[:certain], "" if self.found else self._held[certain:]
        return passed

    def _certain(self) -> int:
        """Return how much of the held text cannot be the beginning of a stop string."""
        longest = max(map(len, self._stops), default=0) - 1
        for at in range(max(0, len(self._held) - longest), len(self._held)):
            if any(stop.startswith(self._held[at:]) for stop in self._stops):
                return at
        return len(self._held)
