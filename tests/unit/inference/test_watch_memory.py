"""The memory that watching takes does not grow with the video."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from ma2mba.video.synthetic.movie import plan_movie, write_movie
from tests.checkout import ROOT


def peak_mb(seconds: int, folder: Path) -> float:
    """Return the peak memory of a process that watches a toy video of this length."""
    write_movie(plan_movie("a", seconds, None, 5, random.Random(0)), folder / f"{seconds}.mp4")
    command = [sys.executable, "-m", "tests.unit.inference.peak_memory", str(folder / f"{seconds}.mp4")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True)
    frames, peak = done.stdout.split()
    assert int(frames) == seconds
    return float(peak)


@pytest.mark.parametrize("seconds", [1800, pytest.param(7200, marks=pytest.mark.slow)])
def test_the_peak_does_not_grow_with_the_video(seconds, tmp_path):
    """7,200 frames of 56 pixels would take 68 MB."""
    assert peak_mb(seconds, tmp_path) == pytest.approx(peak_mb(600, tmp_path), rel=0.05)
