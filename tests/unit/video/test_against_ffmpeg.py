"""The frames sampled of random files are those that ffmpeg shows, or the file is rejected for a reason that is true.

`make fuzz` does the same with 1,000 files (tests/fuzz/test_random_videos.py).
"""

import random

import imageio_ffmpeg
import pytest

from tests.unit.video import differential
from tests.unit.video.ffmpeg import ffmpeg
from tests.unit.video.random_files import SIDE, Kind, picture, write

SEEDS = range(14, 54)
FOUND = {
    "raw H.264 that begins within a group, where the frame rate is known later": Kind(
        "h264", "h264", 3, False, 6, "30000/1001", False, 1000, "cut head", "", 60
    ),
    "the last frame of AVI at a variable rate": Kind("h264", "avi", 1, True, 6, "15", True, 0, "copied", "", 60),
    "the last frame of AVI without B-frames": Kind("libvpx", "avi", 0, True, 6, "8", True, 0, "copied", "", 69),
    "absurd times in a copied part of an Ogg file": Kind(
        "libtheora", "ogv", 0, False, 10, "10", False, 0, "copied", "", 60
    ),
    "a copy from an open group whose first frames mp4 hides": Kind(
        "h264", "mov", 3, True, 25, "30000/1001", False, 0.5, "copied", "cropped", 69
    ),
    "joined MPEG-PS with packets without any time": Kind("h264", "mpg", 1, False, 6, "25", False, 0, "joined", "", 64),
    "ASF whose last frame is shown long after it is decoded": Kind(
        "h264", "asf", 3, False, 10, "8", True, 0, "whole", "", 65
    ),
    "a joined MPEG-TS at a variable rate, whose parts overlap": Kind(
        "h264", "ts", 1, False, 6, "10", True, 1000, "joined", "", 45
    ),
}
"""Kinds of files in which a difference from ffmpeg, or an untrue reason, was found once."""
REJECTED = {"absurd times in a copied part of an Ogg file"}


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


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_once(name, seed, tmp_path):
    path = write(random.Random(seed), FOUND[name], tmp_path)
    outcome = differential.judge(path, FOUND[name], 5)
    assert not outcome.silent, outcome
    assert not outcome.untrue, outcome
    assert bool(outcome.said) == (name in REJECTED) or FOUND[name].cut == "joined", outcome


def test_a_difference_is_noticed(monkeypatch, tmp_path):
    """Here every pair of frames has one time."""
    kind = Kind("h264", "avi", 2, False, 25, "10", False, 0, "whole", "", 40)
    monkeypatch.setattr("tests.unit.video.random_files.choose", lambda rng: kind)
    monkeypatch.setattr("ma2mba.video.times.BestEffort.time", lambda self, pts, dts, duration: (dts or 0) | 1)
    assert (
        differential.compare(random.Random(0), tmp_path).silent or differential.compare(random.Random(0), tmp_path).said
    )


def test_the_wrong_length_of_vorbis_in_avi_does_not_make_a_video_short(tmp_path):
    """ffmpeg says that 7 s of sound last 3.5 s."""
    frames = b"".join(picture(number) for number in range(38))
    video = ["-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{SIDE}x{SIDE}", "-r", 15, "-i", "-"]
    sound = ["-f", "lavfi", "-t", 7, "-i", "sine=sample_rate=44100", "-c:a", "libvorbis"]
    ffmpeg(*video, *sound, "-c:v", "mpeg4", "-q:v", 2, "-pix_fmt", "yuv420p", tmp_path / "v.mkv", data=frames)
    path = tmp_path / "v.avi"
    ffmpeg("-i", tmp_path / "v.mkv", "-c", "copy", path)
    outcome = differential.judge(path, Kind("mpeg4", "avi", 0, False, 12, "15", False, 0, "whole", "", 38, 7.0), 5)
    assert not outcome.said, outcome
    assert not outcome.silent, outcome
