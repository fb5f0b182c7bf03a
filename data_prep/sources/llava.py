"""LLaVA pairs: {id, image | video, conversations}; a record with neither is a conversation without frames."""

from pathlib import Path
from typing import Any

from data_prep.clips import Clip, RecordError
from data_prep.sources.records import media_path, need, record_id
from data_prep.sources.wording import talk


def read_record(record: Any, media: Path, where: str) -> Clip:
    """One record as a clip. Raises RecordError."""
    sample_id = record_id(record)
    named = [key for key in ("image", "video") if key in record]
    if len(named) > 1:
        raise RecordError("names both an image and a video")
    turns = talk(record, marked=bool(named))
    if not named:
        return Clip(sample_id, None, "", False, turns, (), where)
    name = need(record, named[0], str)
    return Clip(sample_id, media_path(media, name), name, named[0] == "image", turns, (), where)
