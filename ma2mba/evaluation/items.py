"""One question of a benchmark, as every reader makes it and the evaluation asks it."""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Line:
    """A line of subtitles, spoken from second `start` of the video to second `end`, not included."""

    start: float
    end: float
    text: str


@dataclass(frozen=True, slots=True)
class Item:
    """A question about a medium, with its gold answer."""

    id: str
    """Unique within its benchmark."""

    medium: Path
    """A video file, or a folder of pictures if `picture_rate` is given. If it is missing, its questions are lost."""

    question: str
    """The bare question, without options."""

    gold: str
    """The text of the right option, without its letter, or the right answer to an open question."""

    prompt: str
    """Question, options and instruction, worded as the authors word them. Without subtitles: see `asked`."""

    options: tuple[str, ...] = ()
    """The texts of the options, without letters, in the order A, B, C … Empty for an open question."""

    shown: bool = True
    """False if `prompt` does not name the options. The answer is then judged as one to an open question."""

    gold_index: int | None = None
    """The place of `gold` in `options`, None for an open question."""

    start: float | None = None
    """The first second of the medium that is watched (default: its beginning)."""

    end: float | None = None
    """The second at which watching ends, not included (default: the medium's end)."""

    picture_rate: float | None = None
    """Pictures per second, if `medium` is a folder of pictures."""

    task: str = "all"
    """The part of the benchmark that results are listed by: "Action Recognition", "needle", …"""

    duration_group: str = ""
    """The length group that the benchmark names ("short", "600", …), "" if it names none."""

    subtitles: tuple[Line, ...] = ()
    """The subtitles of the video, if they are wanted."""

    before_subtitles: str = ""
    """What stands before the subtitles in the prompt."""

    needle: tuple[tuple[str, int | float], ...] = ()
    """Where a needle is: its "length" (of the video, in seconds) and its "depth", for the records. Else empty."""

    @property
    def chance(self) -> float:
        """Return the probability that a guess among the options is right, 0 for an open question."""
        return 1 / len(self.options) if self.options else 0.0

    def asked(self, seconds: Iterable[float]) -> str:
        """Return what the model is asked after frames of these seconds: the subtitles spoken then, and `prompt`."""
        ordered = sorted(seconds)
        spoken = [line.text for line in self.subtitles if _any_within(ordered, line.start, line.end)]
        return "\n".join([*filter(None, [self.before_subtitles]), *spoken, self.prompt]) if spoken else self.prompt


def _any_within(ordered: list[float], start: float, end: float) -> bool:
    at = bisect_left(ordered, start)
    return at < len(ordered) and ordered[at] < end
