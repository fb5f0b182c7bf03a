"""The conversation schema of the paper (section 4): token ids, the positions of frames, and the supervised tokens.

A sample is text with frames between its tokens. The number of tokens of a frame depends on the model, so frames are
positions here (`frame_positions`), never tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer

from ma2mba.errors import UserError
from ma2mba.model.plain_text import END, UnencodableText, encode, plain_text
from ma2mba.model.tokenizer_check import read_tokenizer

SYSTEM = "<|system|>You are a helpful assistant." + END
USER, ASSISTANT = " <|user|>", " <|assistant|>"
IGNORE = -100
"""The target of a token that is not supervised."""


@dataclass(frozen=True)
class Turn:
    role: Literal["user", "assistant"]
    text: str


@dataclass
class Encoded:
    """An encoded sample.

    token_ids        the text
    supervised       for each token, True if the model must predict it
    frame_positions  for each frame, the index of the token after it. Positions never decrease; `len(token_ids)` is the
                     position of a frame after the last token.
    """

    token_ids: list[int] = field(default_factory=list)
    supervised: list[bool] = field(default_factory=list)
    frame_positions: list[int] = field(default_factory=list)

    def add_template(self, tokenizer: Tokenizer, piece: str, *, supervised: bool = False) -> None:
        """Append a piece of the template, in which control tokens are tokens."""
        self._add(encode(tokenizer, piece).ids, supervised)

    def add_text(self, tokenizer: Tokenizer, text: str, *, supervised: bool = False) -> None:
        """Append a text that END follows. A control token that the text spells stays text."""
        self._add(plain_text(tokenizer).ids(text), supervised)

    def _add(self, ids: list[int], supervised: bool) -> None:
        self.token_ids += ids
        self.supervised += [supervised] * len(ids)

    def add_frames(self, count: int) -> None:
        self.frame_positions += [len(self.token_ids)] * count


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Read a `tokenizer.json`. Raise UserError if it is missing, is refused by its trial, or lacks `<|endoftext|>`."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such tokenizer file. Give the path of a tokenizer.json")
    tokenizer = read_tokenizer(path)
    if tokenizer.token_to_id(END) is None:
        raise UserError(f"{path}: has no token {END}. Use the GPT-NeoX tokenizer, or add this token")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    try:
        encode(tokenizer, SYSTEM + USER + ASSISTANT)
    except UnencodableText as error:
        raise UserError(f"{path}: the text of the system's turn {error}. Use the GPT-NeoX tokenizer") from error
    return tokenizer


def encode_conversation(tokenizer: Tokenizer, turns: Sequence[Turn], frames: int) -> Encoded:
    """Encode a conversation (stages 1 and 2). All frames come before the text of the first user turn.

    Only answers are supervised. Raise ValueError unless the turns alternate user, assistant, ..., and start with user,
    and UnencodableText if the tokenizer cannot encode a text.
    """
    roles = [turn.role for turn in turns]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise ValueError(f"the turns are {', '.join(roles) or 'none'}. Alternate user, assistant")
    encoded = Encoded()
    encoded.add_template(tokenizer, SYSTEM)
    for i, turn in enumerate(turns):
        if turn.role == "user":
            _add_question(encoded, tokenizer, turn.text, frames if i == 0 else 0)
        else:
            _add_answer(encoded, tokenizer, turn.text)
    return encoded


def encode_scenes(tokenizer: Tokenizer, scenes: Sequence[tuple[int, str]]) -> Encoded:
    """Encode frames of scene 1, its caption, frames of scene 2, ... (stage 1.5). Only captions are supervised."""
    encoded = Encoded()
    encoded.add_template(tokenizer, SYSTEM)
    for frames, caption in scenes:
        encoded.add_frames(frames)
        _add_answer(encoded, tokenizer, caption)
    return encoded


def encode_prompt(tokenizer: Tokenizer, question: str, frames: int) -> Encoded:
    """Encode a question about `frames` frames, up to where the answer starts.

    Raise UserError for an empty question, and for a question that the tokenizer cannot encode.
    """
    if not question.strip():
        raise UserError('the question is empty. Ask one, as in: ma2mba ask video.mp4 "What happens?" --model DIR')
    encoded = Encoded()
    encoded.add_template(tokenizer, SYSTEM)
    try:
        _add_question(encoded, tokenizer, question, frames)
    except UnencodableText as error:
        raise UserError(f"the question {error}. Write it in other words") from error
    return encoded


def _add_question(encoded: Encoded, tokenizer: Tokenizer, text: str, frames: int) -> None:
    encoded.add_template(tokenizer, USER)
    encoded.add_frames(frames)
    encoded.add_text(tokenizer, text)
    encoded.add_template(tokenizer, END + ASSISTANT)


def _add_answer(encoded: Encoded, tokenizer: Tokenizer, text: str) -> None:
    encoded.add_text(tokenizer, text, supervised=True)
    encoded.add_template(tokenizer, END, supervised=True)
