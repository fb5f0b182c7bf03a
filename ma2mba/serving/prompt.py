"""From a question to what the model reads: text and media in the order of training.

The media of a user's turn come before the turn's text. A prefix is everything up to the end of a medium; its state can
be kept, and other questions may start from it.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tokenizers import Tokenizer

from ma2mba.errors import UserError
from ma2mba.model.conversation import SYSTEM, USER
from ma2mba.model.encoded import ASSISTANT, Encoded
from ma2mba.model.plain_text import END, UnencodableText
from ma2mba.serving.contract import Medium, Turn

MOST_MEDIA = 12
"""Media of one conversation. The name of a state's file lists them, and may have 255 bytes."""
MOST_LETTERS = 400_000
"""Letters of one conversation: its tokens are counted while other requests wait."""


@dataclass(frozen=True)
class Segment:
    """The tokens since the medium before, or since the start, and a medium."""

    before: tuple[int, ...]
    medium: Medium


@dataclass(frozen=True)
class Prefix:
    """A conversation up to the end of a medium."""

    segments: tuple[Segment, ...]

    @property
    def medium(self) -> Medium:
        return self.segments[-1].medium

    @property
    def parent(self) -> "Prefix | None":
        """The prefix up to the medium before."""
        return Prefix(self.segments[:-1]) if len(self.segments) > 1 else None

    @property
    def contents(self) -> tuple[str, ...]:
        return tuple(segment.medium.content for segment in self.segments)

    @cached_property
    def key(self) -> str:
        """A hash of the tokens and the contents, 32 hexadecimal digits. Names and paths of media do not count."""
        parts = [(segment.before, segment.medium.content, segment.medium.kind) for segment in self.segments]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Prompt:
    """A prefix, None without media, and the tokens from there to where the answer starts: one at least."""

    prefix: Prefix | None
    tail: tuple[int, ...]


def medium_prefix(tokenizer: Tokenizer, medium: Medium) -> Prefix:
    """Return the prefix of a conversation that begins with a medium."""
    encoded = Encoded()
    encoded.add_template(tokenizer, SYSTEM)
    encoded.add_template(tokenizer, USER)
    return Prefix((Segment(tuple(encoded.token_ids), medium),))


def encode_turns(tokenizer: Tokenizer, turns: Sequence[Turn]) -> Prompt:
    """Return the prompt of a conversation. Raise UserError for a conversation that the model cannot answer."""
    _require_order(turns)
    encoded, segments = Encoded(), list[Segment]()
    encoded.add_template(tokenizer, SYSTEM)
    for turn in turns:
        if turn.role == "user":
            encoded.add_template(tokenizer, USER)
        for part in turn.parts:
            if isinstance(part, Medium):
                segments.append(Segment(tuple(encoded.token_ids), part))
                encoded = Encoded()
        try:
            encoded.add_text(tokenizer, text_of(turn))
        except UnencodableText as error:
            raise UserError(f"messages: a text {error}. Write it in other words") from error
        encoded.add_template(tokenizer, END + ASSISTANT if turn.role == "user" else END)
    return Prompt(Prefix(tuple(segments)) if segments else None, tuple(encoded.token_ids))


def text_of(turn: Turn) -> str:
    """Return the text of a turn, a line for each part."""
    return "\n".join(part for part in turn.parts if isinstance(part, str))


def _require_order(turns: Sequence[Turn]) -> None:
    roles = [turn.role for turn in turns]
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        raise UserError("messages: the roles must alternate user, assistant, ..., and end with user. Reorder them")
    if not text_of(turns[-1]).strip():
        raise UserError("messages: the last message has no text. Ask a question in it")
    if any(isinstance(part, Medium) for turn in turns[1::2] for part in turn.parts):
        raise UserError("messages: an assistant's message has a video or an image. Put it into a user's message")
    letters = sum(len(text_of(turn)) for turn in turns)
    if letters > MOST_LETTERS:
        raise UserError(f"messages: {letters:,} letters of text. Send {MOST_LETTERS:,} at most")
    media = sum(isinstance(part, Medium) for turn in turns for part in turn.parts)
    if media > MOST_MEDIA:
        raise UserError(f"messages: {media} videos and images. Send {MOST_MEDIA} at most")
