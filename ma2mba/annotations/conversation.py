"""Conversations in LLaVA's form: [{from: human | gpt, value: text}, ...]."""

from dataclasses import dataclass
from typing import Any

from ma2mba.annotations.fields import RecordError, need

MARK = "<image>"
"""Marks the place of the image or the video in the text."""


@dataclass(frozen=True)
class Exchange:
    """A human turn and the answer to it, without the mark."""

    human: str
    gpt: str


def conversation(record: Any, *, marked: bool) -> tuple[Exchange, ...]:
    """Return a record's conversation, in which human and gpt alternate.

    With `marked` the first human turn must hold the mark exactly once; no other turn may hold it. Raise RecordError
    for other marks, for other roles, and for a missing or empty answer.
    """
    texts = []
    for i, turn in enumerate(need(record, "conversations", list)):
        role, text = need(turn, "from", str), need(turn, "value", str)
        expected = ("human", "gpt")[i % 2]
        if role != expected:
            raise RecordError(f"turn {i + 1} is from {role}, not {expected}")
        marks = 1 if marked and i == 0 else 0
        if text.count(MARK) != marks:
            raise RecordError(f"turn {i + 1} has {text.count(MARK)} {MARK} marks, not {marks}")
        texts.append(text.replace(MARK, "").strip())
        if not texts[-1] and role == "gpt":
            raise RecordError(f"turn {i + 1}: the answer is empty")
    if len(texts) % 2:
        raise RecordError("the last human turn has no answer")
    return tuple(Exchange(human, gpt) for human, gpt in zip(texts[::2], texts[1::2], strict=True))
