"""SceneWalk by video: JSON lines {id, video, total_time, clip_num, scenes, conversations}; answer i captions scene i.

Scenes are read by their frame numbers: the data set does not document what `start_fps` and `end_fps` count.
`total_time` is the duration of the video in seconds.
"""

from dataclasses import dataclass, field
from typing import Any

from ma2mba.annotations.conversation import conversation
from ma2mba.annotations.fields import MOST_SECONDS, RecordError, need, need_id, need_seconds
from ma2mba.annotations.files import json_lines
from ma2mba.annotations.media import MediaFolder
from ma2mba.annotations.records import Record, each


@dataclass(frozen=True)
class Scene:
    """Frames [start_frame, end_frame) of the video and their caption.

    `fps` is (`start_fps`, `end_fps`), None unless both are numbers: seconds in some files, a frame rate in others.
    """

    start_frame: int
    end_frame: int
    caption: str
    fps: tuple[float, float] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class SceneWalkRecord(Record):
    """Scenes are in time order; they may overlap. `total_time` is the duration in seconds, if it is given."""

    id: str
    scenes: tuple[Scene, ...]
    total_time: float | None = field(default=None, compare=False)


def fps_of(span: Any) -> tuple[float, float] | None:
    """Return (start_fps, end_fps) of a scene, None unless both are finite numbers."""
    pair = span.get("start_fps"), span.get("end_fps")
    fine = all(isinstance(n, int | float) and not isinstance(n, bool) and 0 <= n < MOST_SECONDS for n in pair)
    return (float(pair[0]), float(pair[1])) if fine else None


def parse(value: Any, folder: MediaFolder, where: str) -> SceneWalkRecord:
    """Return one record. Raise RecordError when it breaks the format."""
    record_id, name = need_id(value), need(value, "video", str)
    spans, count = need(value, "scenes", list), need(value, "clip_num", int)
    captions = [exchange.gpt for exchange in conversation(value, marked=False)]
    if not len(spans) == len(captions) == count:
        raise RecordError(f"clip_num is {count}, but it has {len(spans)} scenes and {len(captions)} captions")
    scenes, before = [], 0
    for i, (span, caption) in enumerate(zip(spans, captions, strict=True), 1):
        start, end = need(span, "start_frame", int), need(span, "end_frame", int)
        if not before <= start < end:
            raise RecordError(
                f"scene {i}: start_frame {start} must be at least {before} and below end_frame {end} "
                "(scenes are in time order)"
            )
        scenes.append(Scene(start, end, caption, fps_of(span)))
        before = start
    seconds = need_seconds(value, "total_time") if "total_time" in value else None
    return SceneWalkRecord(where, folder.inside(name), record_id, tuple(scenes), seconds)


read = each(json_lines, parse)
