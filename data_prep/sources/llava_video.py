"""LLaVA-Video-178K: {id, conversations, data_source, video}; the mark `<image>` stands for the video."""

from pathlib import Path
from typing import Any

from data_prep.clips import Clip
from data_prep.sources.records import media_path, need, record_id
from data_prep.sources.wording import talk


def read_record(record: Any, media: Path, where: str) -> Clip:
    """One record as a clip. Raises RecordError."""
    sample_id, name = record_id(record), need(record, "video", str)
    return Clip(sample_id, media_path(media, name), name, False, talk(record, marked=True), (), where)
