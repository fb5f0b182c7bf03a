"""Frames that a worker reads are the frames that this process reads, and a picture is held once."""

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from ma2mba.errors import UserError
from ma2mba.limits import Limits
from ma2mba.video import blocks, frames
from ma2mba.video.blocks import read_frames
from ma2mba.video.decode import Plan, decode_video
from ma2mba.video.errors import OverMemory
from ma2mba.video.frames import FrameReader
from ma2mba.video.messages import Block
from ma2mba.video.pictures import clip_view
from tests.unit.video.numbered_video import write

MS = Fraction(1, 1000)


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """A video of 40 s: a frame a second, but the frame of second 20 is shown for 10 s."""
    path = tmp_path_factory.mktemp("video") / "a.mkv"
    write(path, [1000 * k for k in range(40) if not 20 < k < 30], MS, codec="mpeg4", options={})
    return path


@pytest.mark.parametrize("count", [None, 7, 1])
def test_a_worker_gives_the_frames_of_this_process(video, count, monkeypatch):
    decoded = decode_video(video, lambda picture: clip_view(picture, 112), count=count)
    expected_NHWC = np.stack([sample.value for sample in decoded.samples])
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 4 * 112 * 112 * 3)
    with FrameReader() as reader:
        for found in (reader.read(video, 112, count=count), read_frames(video, 112, count=count)):
            assert np.array_equal(found.frames_NHWC, expected_NHWC)
            assert found.duration == decoded.duration


def test_a_picture_that_stays_is_held_once(video):
    found = read_frames(video, 112)
    assert found.shown_N.tolist() == [*range(20), *[20] * 10, *range(21, 31)]
    assert len(found.pictures_MCHW) == 31


def test_pictures_come_in_blocks_of_bounded_size(video, monkeypatch):
    sent: list[Plan | Block] = []
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 4 * 112 * 112 * 3)
    blocks.read_blocks(blocks.Request(video, 112), sent.append, lambda: None)
    plan, *rest = sent
    assert plan.pictures == 31
    assert [(block.first, len(block.pictures_MCHW)) for block in rest] == [
        *((first, 4) for first in range(0, 28, 4)),
        (28, 3),
    ]


def test_a_reader_goes_on_after_a_file_that_it_cannot_use(video, tmp_path):
    (tmp_path / "broken.mkv").write_bytes(b"not a video" * 100)
    with FrameReader() as reader:
        for name in ("broken.mkv", "missing.mkv"):
            with pytest.raises(UserError, match=name):
                reader.read(tmp_path / name, 112)
        assert len(reader.read(video, 112, count=3).shown_N) == 3


def shown(stream) -> np.ndarray:
    with stream:
        return np.concatenate([block.pictures_MCHW for block in stream])


def test_what_was_begun_early_is_the_same_stream(video, tmp_path):
    """Another video, other arguments or a file that was written meanwhile: begun again."""
    other = tmp_path / "other.mkv"
    with FrameReader() as reader:
        wanted, two = shown(reader.stream(video, 32)), shown(reader.stream(video, 32, count=2))
        reader.begin(video, 32)
        begun = reader._begun[0]
        taken = reader.stream(video, 32)
        assert taken is begun
        assert np.array_equal(shown(taken), wanted)
        reader.begin(video, 32)
        assert np.array_equal(shown(reader.stream(video, 32, count=2)), two)
        write(other, [0, 1000], MS, codec="mpeg4", options={})
        reader.begin(other, 32)
        other.write_bytes(video.read_bytes())
        assert np.array_equal(shown(reader.stream(other, 32)), wanted)


def test_a_relative_path_counts_from_the_folder_of_the_call(video, monkeypatch):
    with FrameReader() as reader:
        monkeypatch.chdir(video.parent)
        assert len(reader.read(video.name, 112, count=3).shown_N) == 3


def test_the_limit_holds_before_a_frame_is_decoded(video, monkeypatch):
    monkeypatch.setattr(blocks, "limits", lambda: Limits(frames_gb=0.001))
    monkeypatch.setattr(blocks, "clip_view", lambda *_: pytest.fail("a frame was decoded"))
    with pytest.raises(UserError, match=r"its 31 different frames need .* Use --frames N, with at most 26\."):
        read_frames(video, 112)


def test_a_worker_does_not_import_torch():
    code = "import ma2mba.video.frames, sys; print('torch' in sys.modules, 'rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout == "False False\n"


def test_a_file_that_needs_too_much_memory_is_refused_with_its_own_reason(video, monkeypatch):
    """The error of such a file is a MemoryError too."""

    def too_large(_):
        raise OverMemory(video, "reading it takes more than 550 MB of memory")

    monkeypatch.setattr(frames, "_held", too_large)
    with FrameReader() as reader, pytest.raises(UserError, match="reading it takes more than 550 MB of memory"):
        reader.read(video, 112)
