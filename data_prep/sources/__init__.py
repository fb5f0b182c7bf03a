"""Readers of annotation formats: files in, clips and rejects out."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_prep.clips import Clip, Reject, group_by_video, join_scenes
from data_prep.recipe import Recipe
from data_prep.sources import (
    activitynet_qa,
    llava,
    llava_video,
    nextqa,
    perception_test,
    scenewalk,
    scenewalk_segments,
    webvid,
)
from data_prep.sources.records import Files, csv_rows, each, json_lines, json_list, writable

READERS: dict[str, Callable[[Files, Path], Iterator[Clip | Reject]]] = {
    "llava": each(json_list, llava.read_record),
    "webvid": each(csv_rows(*webvid.COLUMNS), webvid.read_record),
    "scenewalk": each(json_lines, scenewalk.read_record),
    "scenewalk_segments": scenewalk_segments.read,
    "llava_video": each(json_list, llava_video.read_record),
    "nextqa_mc": nextqa.read_choices,
    "nextqa_oe": nextqa.read_open,
    "activitynet_qa": activitynet_qa.read,
    "perception_test": perception_test.read,
}
GROUPED = {"llava_video", "nextqa_mc", "nextqa_oe", "activitynet_qa", "perception_test"}
"""Formats whose conversations about one video become one."""
SEGMENTS = "scenewalk_segments"


@dataclass
class Reading:
    """All clips of a recipe, what was malformed, and how many clips there were before grouping."""

    clips: list[Clip] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    records: int = 0
    ungrouped: int = 0
    by_dataset: dict[str, dict[str, int]] = field(default_factory=dict)
    """The same counts for each data set."""


def read_sources(recipe: Recipe, base: Path) -> Reading:
    """Read every annotation file of a recipe. Raises UserError for a file that is not of its format at all."""
    reading = Reading()
    found: list[tuple[str, Clip]] = []
    records, before = Counter[str](), Counter[str]()
    torn = set[str]()
    for source in recipe.sources:
        for item in map(writable, READERS[source.format](source.files(base), base / source.media)):
            records[source.name] += 1
            if isinstance(item, Reject):
                reading.rejects.append(item)
                torn |= {item.sample_id} if source.format == SEGMENTS else set()
            else:
                before[source.name] += 1
                found.append((source.format, replace(item, dataset=source.name)))
    reading.records, reading.ungrouped = records.total(), before.total()
    _gather(reading, found, torn)
    after = Counter(clip.dataset for clip in reading.clips)
    reading.by_dataset = {
        name: {"records": records[name], "conversations": before[name], "grouped": after[name]}
        for name in dict.fromkeys(source.name for source in recipe.sources)
    }
    return reading


def _gather(reading: Reading, found: list[tuple[str, Clip]], torn: set[str]) -> None:
    """The clips of all formats: those that stand alone, those joined from scenes, those joined from questions."""
    reading.clips = [clip for name, clip in found if name not in {*GROUPED, SEGMENTS}]
    for joined in join_scenes([clip for name, clip in found if name == SEGMENTS], torn):
        if isinstance(joined, Reject):
            reading.rejects.append(joined)
        else:
            reading.clips.append(joined)
    reading.clips += group_by_video([clip for name, clip in found if name in GROUPED])
    _settle_repeated(reading)


def _settle_repeated(reading: Reading) -> None:
    """Keep the first clip of each id in a data set; put the data set's name before an id that another one has."""
    first: dict[str, Clip] = {}
    for clip in reading.clips:
        there = first.get(clip.sample_id)
        if there and there.dataset != clip.dataset:
            clip = replace(clip, sample_id=f"{clip.dataset}/{clip.sample_id}")
            there = first.get(clip.sample_id)
        if there:
            reason = f"malformed record: its id stands already in {there.where}"
            reading.rejects.append(Reject(clip.sample_id, clip.name, clip.where, reason))
        else:
            first[clip.sample_id] = clip
    reading.clips = list(first.values())
