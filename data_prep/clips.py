"""Clips, rejected clips, and the joining of clips that show the same video."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from ma2mba.annotations.scenewalk import Scene
from ma2mba.model.conversation import Turn


@dataclass(frozen=True)
class Clip:
    """The plan of one sample: what to watch, and what is said about it (either `turns` or `scenes`).

    `media` is the file's path, None for text alone; `name` is the path in the annotations, "" for text alone. `where`
    is the place of the annotation record. `dataset` is the name of the source in the recipe, and `folder` the folder
    of its media, which `media` may not leave; readers leave both empty. `total_time` is the duration of the video in
    seconds, if the record of its scenes gives it.
    """

    sample_id: str
    media: Path | None
    name: str
    where: str
    turns: tuple[Turn, ...] = ()
    scenes: tuple[Scene, ...] = ()
    total_time: float | None = None
    is_image: bool = False
    dataset: str = ""
    folder: Path | None = None


@dataclass(frozen=True)
class Reject:
    """A record or clip that did not become a sample, and the reason. `where` is the place of the annotation record."""

    sample_id: str
    media: str
    where: str
    reason: str


def parse_reject(content: Any) -> Reject:
    """Convert a JSON value to a Reject. Raise ValueError if it is not one."""
    names = {field.name for field in fields(Reject)}
    if (
        not isinstance(content, dict)
        or content.keys() != names
        or not all(isinstance(v, str) for v in content.values())
    ):
        raise ValueError(f"an entry is not a reject with {', '.join(sorted(names))}")
    return Reject(**content)


def join_videos(clips: list[Clip]) -> Iterator[Clip]:
    """Join the conversations about each video, in their order, into one clip, whose id is the video's name."""
    by_video: dict[Path | str, list[Clip]] = {}
    for clip in clips:
        by_video.setdefault(clip.media or clip.where, []).append(clip)
    for same in by_video.values():
        turns = tuple(turn for clip in same for turn in clip.turns)
        yield replace(same[0], sample_id=same[0].name or same[0].sample_id, turns=turns)


def join_scenes(clips: list[Clip], incomplete: set[str]) -> Iterator[Clip | Reject]:
    """Join the clips of one data set that have the same id, and order their scenes by time.

    Reject a video when its id is in `incomplete` (the record of another scene is bad) or when two of its scenes start
    at the same frame: captions would be assigned to the wrong frames.
    """
    by_id: dict[tuple[str, str], list[Clip]] = {}
    for clip in clips:
        by_id.setdefault((clip.dataset, clip.sample_id), []).append(clip)
    for same in by_id.values():
        first, scenes = same[0], sorted((s for clip in same for s in clip.scenes), key=lambda s: s.start_frame)
        starts = [scene.start_frame for scene in scenes]
        if first.sample_id in incomplete:
            yield Reject(first.sample_id, first.name, first.where, "malformed record: another scene is malformed")
        elif len(set(starts)) < len(starts):
            twice = next(a for a, b in pairwise(starts) if a == b)
            reason = f"malformed record: two scenes of this video start at frame {twice}"
            yield Reject(first.sample_id, first.name, first.where, reason)
        else:
            yield replace(first, scenes=tuple(scenes))
