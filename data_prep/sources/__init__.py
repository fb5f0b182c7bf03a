"""Readers of annotation formats: records in, clips and rejects out."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_prep.clips import Clip, RecordError, Reject, group_by_video
from data_prep.recipe import Recipe
from data_prep.sources import llava, llava_video, scenewalk
from data_prep.sources.records import json_lines, json_list

_READERS: dict[str, tuple[Callable[[Path], Iterator[tuple[str, Any]]], Callable[[Any, Path, str], Clip]]] = {
    "llava": (json_list, llava.read_record),
    "scenewalk": (json_lines, scenewalk.read_record),
    "llava_video": (json_list, llava_video.read_record),
}
GROUPED = {"llava_video"}


@dataclass
class Reading:
    """All clips of a recipe, what was malformed, and how many clips there were before grouping."""

    clips: list[Clip] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    records: int = 0
    ungrouped: int = 0


def read_sources(recipe: Recipe, base: Path) -> Reading:
    """Read every annotation file of a recipe. Raises UserError for a file that is no JSON at all."""
    reading, grouped = Reading(), list[Clip]()
    for source in recipe.sources:
        records_of, read_record = _READERS[source.format]
        for name in source.annotations:
            for where, record in records_of(base / name):
                reading.records += 1
                try:
                    if isinstance(record, RecordError):
                        raise record
                    clip = replace(read_record(record, base / source.media, f"{name} {where}"), dataset=source.name)
                except RecordError as error:
                    reading.rejects.append(_malformed(record, f"{name} {where}", str(error)))
                    continue
                (grouped if source.format in GROUPED else reading.clips).append(clip)
    reading.ungrouped = len(reading.clips) + len(grouped)
    reading.clips += group_by_video(grouped)
    _reject_repeated(reading)
    return reading


def _malformed(record: Any, where: str, reason: str) -> Reject:
    fields = record if isinstance(record, dict) else {}
    media = fields.get("video", fields.get("image", ""))
    return Reject(str(fields.get("id", "")), str(media), where, f"malformed record: {reason}")


def _reject_repeated(reading: Reading) -> None:
    """Keep the first clip of each sample id."""
    first: dict[str, Clip] = {}
    for clip in reading.clips:
        if clip.sample_id in first:
            reason = f"malformed record: its id stands already in {first[clip.sample_id].where}"
            reading.rejects.append(Reject(clip.sample_id, clip.name, clip.where, reason))
        else:
            first[clip.sample_id] = clip
    reading.clips = list(first.values())
