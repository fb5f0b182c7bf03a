"""The bar of a video that is watched, where stderr is not a terminal: lines."""

from pathlib import Path

import pytest

from ma2mba.cli.output import watching
from ma2mba.inference.watch import Progress


@pytest.fixture(autouse=True)
def _every_line(monkeypatch):
    monkeypatch.setattr("ma2mba.progress.LINE_SECONDS", 0.0)


def test_seconds_speed_and_time_left_are_told(capsys):
    with watching(Path("a.mp4")) as report:
        report(Progress(0.0, 600.0, 0, 600, 0.0))
        report(Progress(119.0, 600.0, 120, 600, 4.0))
        report(Progress(600.0, 600.0, 600, 600, 20.0))
    first, second, third = capsys.readouterr().err.splitlines()
    assert first.startswith("watching a.mp4, seconds: 0/600")
    assert second.startswith("watching a.mp4, seconds: 119/600, 30 frames/s")
    assert third.startswith("watching a.mp4, seconds: 600/600, 30 frames/s")


def test_a_picture_needs_no_bar(capsys):
    with watching(Path("a.png")) as report:
        report(Progress(0.0, 0.0, 0, 1, 0.0))
        report(Progress(0.0, 0.0, 1, 1, 0.1))
    assert capsys.readouterr().err == ""
