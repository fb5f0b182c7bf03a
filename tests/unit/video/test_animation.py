"""Animated GIF, PNG, WebP and AVIF are videos, whatever reads them; a still picture is one frame."""

import pytest
from PIL import Image, features

from ma2mba.video.blocks import read_frames
from ma2mba.video.decode import decode_video
from ma2mba.video.errors import MediaError
from tests.unit.video.ffmpeg import SIDE, number_in, numbers_shown, picture

LOSSLESS = {"webp": {"lossless": True}, "avif": {"quality": 100, "subsampling": "4:4:4"}}


def animate(path, durations: list[int]) -> None:
    """Write a frame for each duration in ms."""
    frames = [Image.frombytes("L", (SIDE, SIDE), picture(i + 1)).convert("RGB") for i in range(len(durations))]
    options = LOSSLESS.get(path.suffix[1:], {})
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, **options)


def numbers(path, **options) -> list[int]:
    return [number_in(frame) for frame in read_frames(path, SIDE, **options).frames_NHWC]


@pytest.mark.parametrize("suffix", ["gif", "png", "apng", "webp", "avif"])
def test_an_animation_is_read_alike(suffix, tmp_path):
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow does not write AVIF")
    path = tmp_path / f"v.{suffix}"
    if suffix == "apng":
        animate(tmp_path / "v.png", [100] * 25)
        (tmp_path / "v.png").rename(path)
    else:
        animate(path, [100] * 25)
    found = decode_video(path, number_in)
    assert numbers(path) == [sample.value for sample in found.samples] == [1, 11, 21]
    assert found.duration == pytest.approx(2.5)
    assert numbers(path, fps=10.0) == list(range(1, 26))
    if suffix != "avif":  # ffmpeg shows its still picture
        assert numbers_shown(path, 10) == list(range(1, 26))


def test_webp_shows_frames_for_as_long_as_ffmpeg_does(tmp_path):
    """Frames of at most 10 ms are shown for 100 ms."""
    path = tmp_path / "v.webp"
    animate(path, [0, 5, 10, 20, 50, 200, 400, 30])
    assert numbers(path, fps=100.0)[:75] == numbers_shown(path, 100)[:75]


def test_a_cut_webp_is_damaged(tmp_path):
    path = tmp_path / "v.webp"
    animate(path, [100] * 25)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    with pytest.raises(MediaError, match="truncated"):
        numbers(path)
    with pytest.raises(MediaError, match="truncated"):  # Pillow reads nothing of it
        decode_video(path, number_in, keep_damaged=True)


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg", "bmp"])
def test_a_still_picture_is_one_frame(suffix, tmp_path):
    Image.frombytes("L", (SIDE, SIDE), picture(7)).convert("RGB").save(tmp_path / f"a.{suffix}")
    assert numbers(tmp_path / f"a.{suffix}") == [7]
    with pytest.raises(MediaError, match="still picture"):
        decode_video(tmp_path / f"a.{suffix}", number_in)
