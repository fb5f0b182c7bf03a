"""What the readers of annotation formats produce."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
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
