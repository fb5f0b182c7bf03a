"""The frames sampled of random files are those that ffmpeg shows, or the file is rejected for a reason that is true.

`make fuzz` does the same with 1,000 files (tests/fuzz/test_random_videos.py).
"""

import random

import imageio_ffmpeg
import pytest

from tests.unit.video import differential

SEEDS = range(14, 54)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("random")
    found = {}
    for seed in SEEDS:
        (folder / str(seed)).mkdir()
        found[seed] = differential.compare(random.Random(seed), folder / str(seed))
    return found


def test_ffmpeg_is_new_enough():
    """Debian's 5.1 ignores crops and mirrors."""
    assert int(imageio_ffmpeg.get_ffmpeg_version().lstrip("n").split(".")[0]) >= 7


def test_no_frame_differs_without_a_word(outcomes):
    silent = {seed: str(outcome) for seed, outcome in outcomes.items() if outcome.silent}
    assert not silent


def test_each_reason_is_true(outcomes):
    untrue = {seed: str(outcome) for seed, outcome in outcomes.items() if outcome.untrue}
    assert not untrue
    assert sum(not outcome.said for outcome in outcomes.values()) > len(SEEDS) / 2


def test_a_difference_is_noticed(monkeypatch, tmp_path):
    """Here every pair of frames has one time."""
    kind = differential.Kind("h264", "avi", 2, False, 25, "10", False, 0, "whole", "", 40)
    monkeypatch.setattr("tests.unit.video.random_files.choose", lambda rng: kind)
    monkeypatch.setattr("ma2mba.video.times.BestEffort.time", lambda self, pts, dts, duration: (dts or 0) | 1)
    assert (
        differential.compare(random.Random(0), tmp_path).silent or differential.compare(random.Random(0), tmp_path).said
    )
