"""The conversation schema of the paper (section 4): token ids, the positions of frames, and the supervised tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer

from ma2mba.errors import UserError
from ma2mba.model.encoded import ASSISTANT, SYSTEM, USER, Encoded
from ma2mba.model.plain_text import END, UnencodableText, encode
from ma2mba.model.tokenizer_check import read_tokenizer


@dataclass(frozen=True)
class Turn:
    role: Literal["user", "assistant"]
    text: str


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
