"""Frames of random files that are reached by seeking, or decoded in pieces, are those of decoding from the start."""

import random
import shutil
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest

from ma2mba.video import seek, stretches
from ma2mba.video.decode import decode_video
from ma2mba.video.errors import MediaError
from ma2mba.video.seek import Divided, Doubt, open_at
from tests.unit.video.random_files import make


def frames(path: Path, count: int | None, fps: int, *, sought: bool):
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


@pytest.mark.timeout(3600)
def test_pieces_change_no_pixel(rounds, tmp_path, monkeypatch):
    monkeypatch.setattr(stretches, "LONG", 0)
    monkeypatch.setattr(stretches, "PIECE", 2)
    outcomes = Counter()
    for rng in islice(rounds, 1, None, 2):
        folder = tmp_path / "files"
        folder.mkdir()
        path, kind = make(rng, folder)
        outcomes[f"{kind.codec} {compare_pieces(path, rng.choice([2, 5, 10]), str(kind))}"] += 1
        shutil.rmtree(folder)
    print(outcomes)


def compare_pieces(path: Path, fps: int, kind: str) -> str:
    expected = frames(path, None, fps, sought=False)
    try:
        decode_video(path, np.copy, fps=fps, seek=True, divide=True)
    except Divided as divided:
        pieces = divided.pieces
    except MediaError:
        return "damaged"
    else:
        return "from the start"
    try:
        with open_at(path, lambda: None) as video:
            found = [[picture for picture, _ in video.frames(stretch)] for _, _, stretch in reversed(pieces)][::-1]
    except Doubt:
        return "in doubt"
    pictures = [
        picture for piece, (first, stop, _) in zip(found, pieces, strict=True) for picture in piece[: stop - first]
    ]
    joints = [np.array_equal(piece[-1], after[0]) for piece, after in pairwise(found)]
    if not all(joints):
        return "in doubt"
    assert isinstance(expected, list), f"{kind}: {expected}"
    by_index = {index: pixels for _, index, pixels in expected}
    assert [picture.tobytes() for picture in pictures] == [by_index[index] for index in sorted(by_index)], kind
    return "in pieces"
