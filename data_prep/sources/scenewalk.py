"""SceneWalk by video: {id, video, total_time, clip_num, scenes, conversations}; turns 2i and 2i+1 caption scene i.

Scenes are read by their frame numbers: what `start_fps` and `end_fps` count is not documented by the data set.
"""

from pathlib import Path
from typing import Any

from data_prep.clips import Clip, RecordError, SceneSpan
from data_prep.sources.records import media_path, need, record_id
from data_prep.sources.wording import talk


def read_record(record: Any, media: Path, where: str) -> Clip:
    """One record as a clip. Raises RecordError."""
    sample_id, name = record_id(record), need(record, "video", str)
    scenes, count = need(record, "scenes", list), need(record, "clip_num", int)
    captions = [turn.text for turn in talk(record, marked=False)[1::2]]
    if not len(scenes) == len(captions) == count:
        raise RecordError(f"clip_num is {count}, but it has {len(scenes)} scenes and {len(captions)} captions")
    spans, before = [], 0
    for i, (scene, caption) in enumerate(zip(scenes, captions, strict=True), 1):
        start, end = need(scene, "start_frame", int), need(scene, "end_frame", int)
        if not before <= start < end:
            raise RecordError(f"scene {i} is frames {start} to {end}, after frame {before} of the scene before")
        spans.append(SceneSpan(start, end, caption))
        before = start
    return Clip(sample_id, media_path(media, name), name, False, (), tuple(spans), where)
