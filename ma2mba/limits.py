"""What a file from somebody else may cost: one table of limits, each with the variable that raises it.

A limit is checked before the memory is taken. `MA2MBA_LIMIT_VIDEO_HOURS=48` raises one for every command, and for the
worker processes that the command starts.
"""

import os
from functools import cache

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ma2mba.errors import UserError

PREFIX = "MA2MBA_LIMIT_"
MOST = 1_000_000_000
"""The largest value of a limit: libraries cannot count further in bytes or pixels."""


class Limits(BaseModel):
    """The largest accepted sizes. SECURITY.md lists them with their descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    video_hours: float = Field(24.0, gt=0, description="hours from a video's first frame to its end")
    megapixels: float = Field(100.0, gt=0, description="million pixels of a picture or of a video's frame")
    aspect: float = Field(200.0, ge=1, description="how many times longer one side of a picture may be than the other")
    streams: int = Field(100, gt=0, description="streams of a media file, attachments included")
    attachments_mb: float = Field(64.0, gt=0, description="MB of fonts and covers attached to a Matroska file")
    picture_mb: float = Field(512.0, gt=0, description="MB of a picture's file")
    reading_mb: float = Field(
        550.0, gt=0, description="MB of memory for a media file's headers, index and times, and for one packet"
    )
    frames_gb: float = Field(
        8.0, gt=0, description="GB of different frames that `read_frames` and `FrameReader.read` hold"
    )
    state_gb: float = Field(8.0, gt=0, description="GB of a state file")
    index_expansion: float = Field(
        50.0, gt=0, description="times its size that a shard folder's index may take in memory"
    )
    decoder_gb: float = Field(
        2.0, gt=0, description="GB of memory that each decoder process of `ask` and `eval` may take"
    )
    stall_seconds: float = Field(
        300.0, gt=0, description="seconds without progress before `ask` and `eval` give a file up"
    )
    annotations_gb: float = Field(32.0, gt=0, description="GB of one annotation file")
    questions: int = Field(500_000, gt=0, description="lines of a task file")
    text_mb: float = Field(
        64.0, gt=0, description="MB of an annotation record, of a task file's line or of a tokenizer"
    )
    question_kb: float = Field(100.0, gt=0, description="KB (10^3 bytes) of a question of a task file")

    @field_validator("*")
    @classmethod
    def _countable(cls, value: float) -> float:
        if value > MOST:
            raise ValueError(f"at most {MOST:,}")
        return value


def raise_limit(name: str) -> str:
    """Return the sentence that says how to raise a limit."""
    return f"Set {PREFIX}{name.upper()} to raise this limit"


@cache
def limits() -> Limits:
    """Return the limits, with those that the environment raises. Raise UserError for an unknown or impossible one."""
    given = {key: value for key, value in os.environ.items() if key.startswith(PREFIX)}
    try:
        return Limits.model_validate({key.removeprefix(PREFIX).lower(): value for key, value in given.items()})
    except ValidationError as error:
        first = error.errors()[0]
        name = PREFIX + str(first["loc"][0]).upper()
        known = ", ".join(PREFIX + field.upper() for field in Limits.model_fields)
        raise UserError(f"{name}={given.get(name)}: {first['msg']}. The limits are {known}") from error
