"""WebVid: CSV rows of videoid, contentUrl, duration, page_dir, name. The video's file is {page_dir}/{videoid}.mp4."""

import re
from dataclasses import dataclass
from typing import Any

from ma2mba.annotations.conversation import whole_medium
from ma2mba.annotations.csv_files import csv_rows
from ma2mba.annotations.fields import RecordError, as_texts, need_text
from ma2mba.annotations.media import MediaFolder
from ma2mba.annotations.records import Record, each

COLUMNS = ("videoid", "contentUrl", "duration", "page_dir", "name")
_DURATION = re.compile(r"P(?:\d+D)?T(?=\d)(?:\d+H)?(?:\d+M)?(?:\d+(?:\.\d+)?S)?")


@dataclass(frozen=True)
class WebVidRecord(Record):
    """`name` is the caption."""

    videoid: str
    name: str


def parse(value: Any, folder: MediaFolder, where: str) -> WebVidRecord:
    """Return one record. Raise RecordError when it breaks the format."""
    value = as_texts(value)
    whole_medium(value)
    videoid, page_dir, name = (need_text(value, key) for key in ("videoid", "page_dir", "name"))
    if not _DURATION.fullmatch(need_text(value, "duration")):
        raise RecordError(f"duration is {value['duration']}, not like PT00H00M11S")
    return WebVidRecord(where, folder.inside(f"{page_dir}/{videoid}.mp4"), videoid, name)


read = each(csv_rows(*COLUMNS), parse, COLUMNS)
