"""The frames of random files that are reached by seeking are the frames of decoding from the start."""

import random
import shutil
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from ma2mba.video import seek
from ma2mba.video.decode import decode_video
from ma2mba.video.errors import MediaError
from tests.unit.video.random_files import make


def frames(path: Path, count: int, fps: int, *, sought: bool):
    """Return (time, number, pixels) of the samples, or the reason for which the file is rejected."""
    try:
        samples = decode_video(path, np.copy, fps=fps, count=count, seek=sought).samples
    except MediaError as error:
        return error.reason
    return [(sample.t, sample.index, sample.value.tobytes()) for sample in samples]


@pytest.mark.timeout(3600)
def test_seeking_changes_no_pixel(rounds, tmp_path, monkeypatch):
    monkeypatch.setattr(seek, "WORTH", -(10**9))
    monkeypatch.setattr(seek, "SEEK_COST", 0)
    reached, real = [], seek.decode_sparse

    def decode_sparse(*arguments):
        found = real(*arguments)
        reached.append(found is not None)
        return found

    monkeypatch.setattr("ma2mba.video.decode.decode_sparse", decode_sparse)
    outcomes = Counter()
    for rng in islice(rounds, 0, None, 2):
        folder = tmp_path / "files"
        folder.mkdir()
        outcomes[compare(rng, folder, reached)] += 1
        shutil.rmtree(folder)
    print(outcomes)


def compare(rng: random.Random, folder: Path, reached: list[bool]) -> str:
    path, kind = make(rng, folder)
    count, fps = rng.randint(1, 5), rng.choice([5, 10, 25])
    expected = frames(path, count, fps, sought=False)
    reached.clear()
    found = frames(path, count, fps, sought=True)
    if isinstance(expected, str):
        return "damaged"  # seeking may miss damage between the frames
    assert found == expected, str(kind)
    how = "sought" if reached == [True] else "in doubt" if not reached else "from the start"
    return f"{kind.codec} {how}"
