"""What the readers of annotation formats produce."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from ma2mba.model.conversation import Turn


@dataclass(frozen=True)
class SceneSpan:
    """Frames [start_frame, end_frame) of the video file and what is said of them."""

    start_frame: int
    end_frame: int
    caption: str


@dataclass(frozen=True)
class Clip:
    """One sample to be: what to watch and what to say (either `turns` or `scenes`).

    `media` is None for a record of text alone; `name` is its path in the annotations; `where` names the record;
    `dataset` is the name of its source in the recipe.
    """

    sample_id: str
    media: Path | None
    name: str
    is_image: bool
    turns: tuple[Turn, ...]
    scenes: tuple[SceneSpan, ...]
    where: str
    dataset: str = ""


@dataclass(frozen=True)
class Reject:
    """Something that did not become a sample, and why. `where` names the annotation record."""

    sample_id: str
    media: str
    where: str
    reason: str


class RecordError(ValueError):
    """A record that is not what its format says."""


def group_by_video(clips: list[Clip]) -> Iterator[Clip]:
    """Join the conversations about one video, in order of appearance, into one clip in the place of the first."""
    groups: dict[Path, list[Clip]] = {}
    for clip in clips:
        assert clip.media is not None
        groups.setdefault(clip.media, []).append(clip)
    for some in groups.values():
        turns = tuple(turn for clip in some for turn in clip.turns)
        yield replace(some[0], sample_id=some[0].name, turns=turns)


def join_scenes(clips: list[Clip], incomplete: set[str]) -> Iterator[Clip | Reject]:
    """Join clips of one scene each that have one id, in time order.

    A video of which a scene is missing (its id is in `incomplete`) or starts twice is rejected:
    it would be captioned wrongly.
    """
    groups: dict[tuple[str, str], list[Clip]] = {}
    for clip in clips:
        groups.setdefault((clip.dataset, clip.sample_id), []).append(clip)
    for some in groups.values():
        first, scenes = some[0], sorted((s for clip in some for s in clip.scenes), key=lambda s: s.start_frame)
        starts = [scene.start_frame for scene in scenes]
        if first.sample_id in incomplete:
            yield Reject(first.sample_id, first.name, first.where, "malformed record: another scene of it is malformed")
        elif len(set(starts)) < len(starts):
            twice = next(a for a, b in pairwise(starts) if a == b)
            reason = f"malformed record: two scenes of it start at frame {twice}"
            yield Reject(first.sample_id, first.name, first.where, reason)
        else:
            yield replace(first, scenes=tuple(scenes))
