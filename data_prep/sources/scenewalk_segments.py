"""SceneWalk by segment: Parquet rows of one scene each; the rows of one id make one video, in time order."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.clips import Clip, RecordError, Reject, SceneSpan
from data_prep.sources.records import Files, VideoFinder, attempt, need, record_id
from data_prep.sources.wording import talk
from ma2mba.shards.tables import read_records

COLUMNS = ("id", "time_stamp", "conversations")


def read(files: Files, media: Path) -> Iterator[Clip | Reject]:
    """A clip of one scene for each row."""
    finder = VideoFinder(media)

    def read_row(record: Any, media: Path, where: str) -> Clip:
        sample_id = record_id(record)
        name = finder.name(sample_id)
        return Clip(sample_id, media / name, name, False, (), (_scene(record),), where)

    for name, path in files:
        for i, record in enumerate(read_records(path, COLUMNS), 1):
            yield attempt(read_row, record, media, f"{name} row {i}")


def _scene(record: Any) -> SceneSpan:
    times, turns = need(record, "time_stamp", dict), talk(record, marked=False)
    start, end = need(times, "start_frame", int), need(times, "end_frame", int)
    if not 0 <= start < end:
        raise RecordError(f"the scene is frames {start} to {end}")
    if len(turns) != 2:
        raise RecordError(f"has {len(turns) // 2} captions, not one")
    return SceneSpan(start, end, turns[1].text)
