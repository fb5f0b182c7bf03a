"""SceneWalk by segment: Parquet rows {id, time_stamp, conversations, ...}, one scene each, of the video {id}.*"""

from dataclasses import dataclass
from typing import Any

from ma2mba.annotations.conversation import conversation
from ma2mba.annotations.fields import RecordError, need, need_id
from ma2mba.annotations.media import MediaFolder
from ma2mba.annotations.parquet import parquet_rows
from ma2mba.annotations.records import Record, each
from ma2mba.annotations.scenewalk import Scene, fps_of

COLUMNS = ("id", "time_stamp", "conversations")


@dataclass(frozen=True)
class SegmentRecord(Record):
    """One scene. Rows with the same `id` are scenes of one video, in any order."""

    id: str
    scene: Scene


def parse(value: Any, folder: MediaFolder, where: str) -> SegmentRecord:
    """Return one record. Raise RecordError when it breaks the format."""
    record_id = need_id(value)
    media = folder.find(record_id)
    times, exchanges = need(value, "time_stamp", dict), conversation(value, marked=False)
    start, end = need(times, "start_frame", int), need(times, "end_frame", int)
    if not 0 <= start < end:
        raise RecordError(f"start_frame {start} must be at least 0 and below end_frame {end}")
    if len(exchanges) != 1:
        raise RecordError(f"has {len(exchanges)} captions, not one")
    return SegmentRecord(where, media, record_id, Scene(start, end, exchanges[0].gpt, fps_of(times)))


read = each(parquet_rows(*COLUMNS), parse, COLUMNS)
