"""Compare the frames that `decode_video` samples with the frames that ffmpeg shows."""

import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import av

from ma2mba.video.decode import decode_video
from ma2mba.video.errors import MediaError
from tests.unit.video.ffmpeg import number_in, numbers_shown
from tests.unit.video.random_files import Kind, make

REASONS = {
    "cannot be opened": (
        *("not a readable video", "the file is empty", "it has no video stream", "it holds no frames"),
        "its video codec is unknown",
        ", not a video",
    ),
    "truncated": ("truncated",),
    "damaged": ("damaged", "reading stopped", "no frame could be decoded", "it begins within a group of pictures"),
    "no times of shown frames": ("it states when frames are decoded", "its clock"),
}
"""What a rejection says, and the words that say it."""


@dataclass(frozen=True)
class Outcome:
    """What came of one file.

    `said`: a key of REASONS, "" for a file that was read. `silent`: its frames differ from ffmpeg's without a word.
    """

    kind: Kind
    said: str
    reason: str
    silent: bool
    ours: list[int]
    theirs: list[int]

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason or 'read'}\n  ours   {self.ours}\n  ffmpeg {self.theirs}"

    @property
    def untrue(self) -> bool:
        """Return True if the reason cannot be true: the file is whole, and ffmpeg shows it."""
        return bool(self.said) and bool(self.theirs) and self.said not in self.kind.faults()


def compare(rng: random.Random, folder: Path) -> Outcome:
    """Make a random file, and read it in both ways."""
    path, kind = make(rng, folder)
    return judge(path, kind, rng.choice([1, 2, 5, 10]))


def judge(path: Path, kind: Kind, fps: int) -> Outcome:
    """Read a file in both ways."""
    theirs = numbers_shown(path, fps)
    try:
        ours = [sample.value for sample in decode_video(path, number_in, fps=fps).samples]
    except MediaError as error:
        return Outcome(kind, said(error.reason), error.reason, False, [], theirs)
    compared = ours[: len(theirs)] if kind.cut == "cut tail" and theirs else ours  # ffmpeg may drop whole frames
    return Outcome(kind, "", "", not same(compared, theirs), ours, theirs)


def same(ours: list[int], theirs: list[int]) -> bool:
    """Return True if all frames are equal. ffmpeg may end one sample earlier or later than the last frame does.

    FFmpeg 7, in PyAV 15, may not know how long the last frame of a copied stream is shown: more of its samples may be
    missing.
    """
    shared = min(len(ours), len(theirs))
    last_is_short = av.__version__.startswith("15.") and len(set(theirs[shared:])) == 1
    return ours[:shared] == theirs[:shared] and (abs(len(ours) - len(theirs)) <= 1 or last_is_short)


def said(reason: str) -> str:
    """Return which of REASONS a rejection says; the words themselves if none."""
    return next((name for name, words in REASONS.items() if any(word in reason for word in words)), reason)


def table(outcomes: list[Outcome]) -> str:
    """Return how many files were read, and how many were rejected for which reason."""
    counts = Counter(outcome.said or "read" for outcome in outcomes)
    return ", ".join(f"{name}: {count}" for name, count in counts.most_common())
