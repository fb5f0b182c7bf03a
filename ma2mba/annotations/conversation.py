"""Conversations in LLaVA's form: [{from: human | gpt, value: text}, ...]."""

from dataclasses import dataclass
from typing import Any

from ma2mba.annotations.fields import RecordError, need

MARK = "<image>"
"""Marks the place of the image or the video in the text."""
OTHER_MARK = "<video>"
"""Marks a video in other data sets."""
NOT_READ = (
    *("start", "end", "start_time", "end_time", "start_sec", "end_sec", "start_frame", "end_frame"),
    *("timestamps", "time_stamp", "segment", "images", "videos"),
)
"""Keys that change what is watched in other data sets. A record that has one would be read wrongly."""


@dataclass(frozen=True)
class Exchange:
    """A human turn and the answer to it, without the mark."""

    human: str
    gpt: str


def whole_medium(record: Any) -> None:
    """Raise RecordError if a record asks for a part of its medium, or for several media."""
    for key in NOT_READ:
        if isinstance(record, dict) and key in record:
            raise RecordError(f"has the key {key}, which this format does not read: a record is one whole file")


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
        if marked and OTHER_MARK in text:
            raise RecordError(f"turn {i + 1} has the mark {OTHER_MARK}; {MARK} marks a video too, once")
        marks = 1 if marked and i == 0 else 0
        if text.count(MARK) != marks:
            raise RecordError(f"turn {i + 1} has {text.count(MARK)} {MARK} marks, not {marks}")
        texts.append(text.replace(MARK, "").strip())
        if not texts[-1] and role == "gpt":
            raise RecordError(f"turn {i + 1}: the answer is empty")
    if len(texts) % 2:
        raise RecordError("the last human turn has no answer")
    return tuple(Exchange(human, gpt) for human, gpt in zip(texts[::2], texts[1::2], strict=True))
