"""Conversations: those that records hold, and questions, options and captions put as the data sets put them."""

import string
import zlib
from collections.abc import Sequence
from typing import Any

from data_prep.clips import RecordError
from data_prep.sources.records import need
from ma2mba.model.conversation import Turn

MARK = "<image>"
"""Stands in the text for the image or the video."""
CHOOSE = "Please provide your answer by stating the letter followed by the full option."
"""LLaVA-Video-178K's request after the options."""
DESCRIBE_VIDEO = (
    "Give a brief description of the video.",
    "Provide a brief description of the given video.",
    "Render a clear and concise summary of the video.",
    "Share a concise interpretation of the video provided.",
    "Summarize the visual content of the video.",
    "Write a terse but informative summary of the video.",
)
"""LLaVA-Pretrain's requests, said of videos, for captions that come without one."""
_ROLES = {"human": "user", "gpt": "assistant"}


def talk(record: Any, *, marked: bool) -> tuple[Turn, ...]:
    """A record's conversation, human and gpt by turns, without the mark.

    Raises RecordError for other roles or order, an empty answer, or unless the mark stands once, in the first human
    turn (`marked`), or nowhere.
    """
    turns = []
    for i, turn in enumerate(need(record, "conversations", list)):
        role, text = need(turn, "from", str), need(turn, "value", str)
        expected = ("human", "gpt")[i % 2]
        if role != expected:
            raise RecordError(f"turn {i + 1} is from {role}, not {expected}")
        if text.count(MARK) != (1 if marked and i == 0 else 0):
            raise RecordError(f"turn {i + 1} holds {MARK} {text.count(MARK)} times")
        turns.append(Turn(_ROLES[role], text.replace(MARK, "").strip()))  # type: ignore[arg-type]
        if not turns[-1].text and role == "gpt":
            raise RecordError(f"turn {i + 1} says nothing")
    if len(turns) % 2:
        raise RecordError("the last human turn has no answer")
    return tuple(turns)


def open_question(question: str, answer: str) -> tuple[Turn, ...]:
    """Question and answer as they are written."""
    return Turn("user", question), Turn("assistant", answer)


def multiple_choice(question: str, options: Sequence[str], right: int) -> tuple[Turn, ...]:
    """The question, "Options:\\nA. ..." and so on; the answer repeats the right option's line ("E. training.")."""
    lines = [f"{letter}. {_sentence(text)}" for letter, text in zip(string.ascii_uppercase, options, strict=False)]
    asked = "\n".join([question, "Options:", *lines, CHOOSE])
    return Turn("user", asked), Turn("assistant", lines[right])


def described(key: str, caption: str) -> tuple[Turn, ...]:
    """A caption as the answer to one of DESCRIBE_VIDEO, always the same one for the same key."""
    asked = DESCRIBE_VIDEO[zlib.crc32(key.encode()) % len(DESCRIBE_VIDEO)]
    return Turn("user", asked), Turn("assistant", caption)


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."
