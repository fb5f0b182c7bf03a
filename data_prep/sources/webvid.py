"""WebVid: CSV rows videoid, contentUrl, duration, page_dir, name (the caption); the file is page_dir/videoid.mp4."""

import re
from pathlib import Path
from typing import Any

from data_prep.clips import Clip, RecordError
from data_prep.sources.records import media_path, need_text
from data_prep.sources.wording import described

COLUMNS = ("videoid", "contentUrl", "duration", "page_dir", "name")
_DURATION = re.compile(r"P(?:\d+D)?T(?=\d)(?:\d+H)?(?:\d+M)?(?:\d+(?:\.\d+)?S)?")


def read_record(record: Any, media: Path, where: str) -> Clip:
    """One record as a clip. Raises RecordError."""
    video, folder, caption = (need_text(record, key) for key in ("videoid", "page_dir", "name"))
    if not _DURATION.fullmatch(need_text(record, "duration")):
        raise RecordError(f"duration is {record['duration']}, not like PT00H00M11S")
    name = f"{folder}/{video}.mp4"
    return Clip(video, media_path(media, name), name, False, described(video, caption), (), where)
