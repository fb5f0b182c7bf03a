"""A chat that watches some seconds of a video, or a folder of pictures, sees the frames of exactly these seconds."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ma2mba.errors import UserError
from ma2mba.inference.chat import VideoChat
from ma2mba.video.blocks import FrameSet, read_frames
from ma2mba.video.frames import FrameReader, Window
from tests.unit.inference.fake_stream import SIZE
from tests.unit.video.numbered_video import write

MS = Fraction(1, 1000)


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("video") / "a.mkv"
    write(path, [500 * k for k in range(40)], MS, codec="mpeg4", options={})
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Twelve pictures of one grey each, whose names need numeric order; and a file that is not a picture."""
    for k in range(12):
        Image.fromarray(np.full((SIZE, SIZE, 3), 20 * k, np.uint8)).save(tmp_path / f"frame_{k}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def streamed(path: Path, window: Window, count: int | None = None) -> FrameSet:
    with FrameReader() as reader, reader.stream(path, SIZE, count=count, window=window) as stream:
        pictures = np.concatenate([block.pictures_MCHW.copy() for block in stream])
        return FrameSet(pictures, stream.shown_N, stream.duration)


@pytest.mark.parametrize(("start", "stop", "frames"), [(3.0, 7.0, 4), (2.5, None, 18), (None, 4.2, 5)])
@pytest.mark.parametrize("count", [None, 2])
def test_a_window_gives_the_frames_of_its_seconds(video, start, stop, frames, count):
    found = streamed(video, Window(start, stop), count)
    expected = read_frames(video, SIZE, start=start, stop=stop, count=count)
    assert len(found.shown_N) == (count or frames)
    assert (found.frames_NHWC == expected.frames_NHWC).all()


@pytest.mark.parametrize(
    ("window", "shown"),
    [
        (Window(picture_rate=3.0), [0, 3, 6, 9]),
        (Window(1.0, 3.0, picture_rate=3.0), [3, 6]),
        (Window(0.5, None, picture_rate=1.0), list(range(12))),
    ],
)
def test_a_folder_of_pictures_is_a_video_of_its_rate(folder, window, shown):
    found = streamed(folder, window)
    assert [int(picture[0, 0, 0]) // 20 for picture in found.frames_NHWC] == shown


def test_a_window_beyond_the_video_is_refused(video, folder):
    for path, window in ((video, Window(100.0)), (folder, Window(100.0, picture_rate=3.0))):
        with pytest.raises(UserError, match=r"in the requested range"):
            streamed(path, window)


def test_a_folder_without_pictures_or_a_file_in_its_place_is_refused(tmp_path, video):
    with pytest.raises(UserError, match="holds no picture"):
        streamed(tmp_path, Window(picture_rate=3.0))
    with pytest.raises(UserError, match="not a folder of pictures"):
        streamed(video, Window(picture_rate=3.0))


def test_a_chat_watches_the_window(model, tokenizer, video, folder):
    chat, whole, shorter = (VideoChat(model, tokenizer) for _ in range(3))
    assert chat.watch(video, hashed=False, window=Window(3.0, 7.0)).frames == 4
    whole.watch(video, hashed=False)
    assert not torch.equal(chat.fork().asked("?").logits(), whole.fork().asked("?").logits())
    assert shorter.watch(folder, hashed=False, window=Window(picture_rate=3.0)).frames == 4
    with pytest.raises(ValueError, match="cannot be hashed"):
        chat.watch(video, window=Window(3.0, 7.0))
