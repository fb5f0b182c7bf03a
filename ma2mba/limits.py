"""What a file from somebody else may cost: one table of limits, each with the variable that raises it.

A limit is checked before the memory is taken. `MA2MBA_LIMIT_VIDEO_HOURS=48` raises one for every command, and for the
worker processes that the command starts. A model folder has a copy of this file, so it imports the standard library
alone.
"""

import os
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

from ma2mba.errors import UserError

PREFIX = "MA2MBA_LIMIT_"
MOST = 1_000_000_000
"""The largest value of a limit: libraries cannot count further in bytes or pixels."""


def _limit(default: float, description: str, least: float = 0) -> Any:
    return field(default=default, metadata={"description": description, "least": least})


@dataclass(frozen=True)
class Limits:
    """The largest accepted sizes. SECURITY.md lists them with their descriptions."""

    video_hours: float = _limit(24.0, "hours from a video's first frame to its end")
    megapixels: float = _limit(100.0, "million pixels of a picture or of a video's frame")
    aspect: float = _limit(200.0, "how many times longer one side of a picture may be than the other", least=1)
    streams: int = _limit(100, "streams of a media file, attachments included")
    attachments_mb: float = _limit(64.0, "MB of fonts and covers attached to a Matroska file")
    picture_mb: float = _limit(512.0, "MB of a picture's file")
    reading_mb: float = _limit(550.0, "MB of memory for a media file's headers, index and times, and for one packet")
    frames_gb: float = _limit(8.0, "GB of different frames that `read_frames` and `FrameReader.read` hold")
    state_gb: float = _limit(8.0, "GB of a state file")
    index_expansion: float = _limit(50.0, "times its size that a shard folder's index may take in memory")
    decoder_gb: float = _limit(2.0, "GB of memory that each decoder process of `ask` and `eval` may take")
    stall_seconds: float = _limit(300.0, "seconds without progress before `ask` and `eval` give a file up")
    annotations_gb: float = _limit(32.0, "GB of one annotation file")
    questions: int = _limit(500_000, "lines of a task file")
    text_mb: float = _limit(64.0, "MB of an annotation record, of a task file's line or of a tokenizer")
    question_kb: float = _limit(100.0, "KB (10^3 bytes) of a question of a task file")


def raise_limit(name: str) -> str:
    """Return the sentence that says how to raise a limit."""
    return f"Set {PREFIX}{name.upper()} to raise this limit"


@cache
def limits() -> Limits:
    """Return the limits, with those that the environment raises. Raise UserError for an unknown or impossible one."""
    known = {PREFIX + one.name.upper(): one for one in fields(Limits)}
    given: dict[str, Any] = {}
    for variable, text in os.environ.items():
        if not variable.startswith(PREFIX):
            continue
        one = known.get(variable)
        problem = "is no limit" if one is None else _problem(text, one.type, one.metadata["least"])
        if problem or one is None:
            raise UserError(f"{variable}={text}: {problem}. The limits are {', '.join(known)}")
        given[one.name] = int(text) if one.type is int else float(text)
    return Limits(**given)


def _problem(text: str, kind: Any, least: float) -> str:
    """Return why a text is not the value of a limit; "" if it is."""
    try:
        value = int(text) if kind is int else float(text)
    except ValueError:
        return "is not a whole number" if kind is int else "is not a number"
    if not value <= MOST:
        return f"is more than {MOST:,}"
    if value < least or value <= 0:
        return f"is less than {least:g}" if least else "is not above 0"
    return ""
