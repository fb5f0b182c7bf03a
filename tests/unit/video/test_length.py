"""What a media file is, and how long it lasts, is found without decoding a video."""

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from ma2mba.video.decode import decode_video
from ma2mba.video.errors import MediaError
from ma2mba.video.frames import FrameReader
from ma2mba.video.length import Length, media_length
from tests.unit.video.numbered_video import picture, write

STILLS = ("jpg", "png", "webp", "bmp")
ANIMATIONS = ("png", "webp", "gif")


def still(path):
    Image.fromarray(picture(5)).save(path)
    return path


def animation(path):
    first, *rest = (Image.fromarray(picture(number)) for number in range(3))
    first.save(path, save_all=True, append_images=rest, duration=500, loop=0)
    return path


@pytest.mark.parametrize("suffix", STILLS)
@pytest.mark.parametrize("kind", [None, "image"])
def test_pictures_are_images(tmp_path, suffix, kind):
    assert media_length(still(tmp_path / f"a.{suffix}"), kind) == Length("image", 0)


@pytest.mark.parametrize("suffix", ANIMATIONS)
def test_animations_are_videos(tmp_path, suffix):
    path = animation(tmp_path / f"a.{suffix}")
    found = media_length(path, None)
    assert found == Length("video", decode_video(path, lambda _: 0).duration)
    assert found.seconds == pytest.approx(1.5)


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_an_animation_is_no_image_because_it_is_read_as_a_video(tmp_path, suffix):
    path = animation(tmp_path / f"a.{suffix}")
    assert media_length(path, "image").kind == "video"
    with FrameReader() as reader:
        assert len(reader.read(path, 32).shown_N) > 1


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "mov"])
def test_the_length_of_a_video_is_the_decoded_length(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    write(path, range(0, 100, 2), Fraction(1, 25))
    assert media_length(path, "video") == Length("video", decode_video(path, np.mean).duration)


@pytest.mark.parametrize(("suffix", "codec"), [("avi", "mpeg4"), ("h264", "libx264")])
def test_times_that_packets_do_not_state_are_estimated(tmp_path, suffix, codec):
    path = tmp_path / f"a.{suffix}"
    write(path, range(100), Fraction(1, 25), codec=codec, options={}, format="h264" if suffix == "h264" else None)
    assert media_length(path, None).seconds == pytest.approx(4, abs=0.3)


def test_damage_is_told(tmp_path):
    path = tmp_path / "a.mkv"
    write(path, range(40), Fraction(1))
    path.write_bytes(path.read_bytes()[:-100])
    assert "damaged" in media_length(path, None).damage


@pytest.mark.parametrize(("name", "kind"), [("a.png", "video"), ("a.mp4", "image")])
def test_the_wrong_kind_is_refused(tmp_path, name, kind):
    if name.endswith("png"):
        still(tmp_path / name)
    else:
        write(tmp_path / name, range(3), Fraction(1))
    with pytest.raises(MediaError):
        media_length(tmp_path / name, kind)
