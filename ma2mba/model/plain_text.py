"""Encode text from people as plain text: a control token that the text spells, such as `<|endoftext|>`, stays text.

Without this, "<|endoftext|>" in an annotation would end the answer in training, and in a question it would end the
user's turn.
"""

import json
import re
from functools import lru_cache
from itertools import pairwise

from tokenizers import Encoding, Tokenizer

from ma2mba.strings import fits_utf8, shorten

_CONTROL = re.compile(r"\s*(<.*>|\[.*\])\s*", re.DOTALL)
"""How a control token looks that is not declared special, such as `<think>`. Added runs of spaces are not control
tokens: they stay tokens, as in the tokenizer of GPT-NeoX."""
END = "<|endoftext|>"
"""The token that ends every turn."""


class UnencodableText(ValueError):
    """A tokenizer cannot encode a text. The message says why, without the text."""


def encode(tokenizer: Tokenizer, text: str) -> Encoding:
    """Return the encoding of a text, control tokens included. Raise UnencodableText if the tokenizer fails on it."""
    try:
        return tokenizer.encode(text, add_special_tokens=False)
    except BaseException as error:  # of Rust: without a token for a letter, and a panic, which is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UnencodableText(f"makes the tokenizer fail ({shorten(str(error))})") from error


class PlainText:
    """Encodes text without control tokens. Other text gets the same ids as from the tokenizer itself."""

    def __init__(self, tokenizer: Tokenizer):
        content = json.loads(tokenizer.to_str())
        content["truncation"] = content["padding"] = None
        control = [
            token for token in content["added_tokens"] if token["special"] or _CONTROL.fullmatch(token["content"])
        ]
        for token in control:
            token["special"] = True  # only special tokens can be switched off, and this keeps the ids of all tokens
        self._tokenizer = Tokenizer.from_str(json.dumps(content))
        self._tokenizer.encode_special_tokens = True  # encode what they spell
        unknown = {content["model"].get("unk_token")} - {END}  # the token of every word that is not in the vocabulary
        self._control = {token["id"]: token["content"] for token in control if token["content"] not in unknown}
        self._end_takes_spaces = any(token["content"] == END and token["lstrip"] for token in control)

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text that is followed by the token END. Raise UnencodableText if there are none."""
        if not fits_utf8(text):
            raise UnencodableText("is not valid Unicode")
        return self._ids(text.rstrip() if self._end_takes_spaces else text)

    def _ids(self, text: str) -> list[int]:
        encoding = encode(self._tokenizer, text)
        if self._control.keys().isdisjoint(encoding.ids):
            return encoding.ids
        # the tokenizer's model takes whole words for control tokens: cut each such word after its first character
        spans = zip(encoding.ids, encoding.offsets, strict=True)
        words = [span for number, span in spans if number in self._control]
        if single := [start for start, end in words if end - start < 2]:
            raise UnencodableText(f"contains {text[single[0]]!r}, which the tokenizer does not know")
        cuts = [0, *(start + 1 for start, _ in words), len(text)]
        return [number for start, end in pairwise(cuts) for number in self._ids(text[start:end])]


@lru_cache(maxsize=4)
def plain_text(tokenizer: Tokenizer) -> PlainText:
    """Return the encoder of plain text that belongs to a tokenizer. Building it takes longer than encoding a text."""
    return PlainText(tokenizer)
