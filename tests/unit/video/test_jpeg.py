"""A damaged JPEG is noticed, and an odd one that is sound is read."""

import io
import random

import numpy as np
import pytest
from PIL import Image

from ma2mba.video.errors import MediaError
from ma2mba.video.pictures import read_image
from tests.unit.video.ffmpeg import number_in, picture

NUMBER = 43943


def photo(width: int = 200, height: int = 150) -> Image.Image:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    colours = [(np.sin(x / 9) + 1) * 90, (np.cos(y / 7) + 1) * 100, (x + y) / 2 % 255]
    noise = rng.integers(0, 30, (height, width, 3))
    return Image.fromarray((np.stack(colours, -1) + noise).clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image | None = None, **options) -> bytes:
    out = io.BytesIO()
    (image or photo()).save(out, "JPEG", **options)
    return out.getvalue()


def adobe(data: bytes, transform: int) -> bytes:
    at = data.index(b"Adobe") + 11
    return data[:at] + bytes([transform]) + data[at + 1 :]


PLAIN, CMYK = jpeg(), jpeg(photo().convert("CMYK"))
SOUND = {
    "plain": PLAIN,
    "progressive": jpeg(progressive=True),
    "restart markers in each row": jpeg(restart_marker_rows=1),
    "restart markers in each third block": jpeg(restart_marker_blocks=3),
    "4:1:1": jpeg(subsampling="4:1:1"),
    "4:4:4": jpeg(subsampling="4:4:4"),
    "grey": jpeg(photo().convert("L")),
    "CMYK": CMYK,
    "progressive CMYK": jpeg(photo().convert("CMYK"), progressive=True),
    "RGB": jpeg(keep_rgb=True),
    "odd size": jpeg(photo(201, 33)),
    "one pixel": jpeg(photo(1, 1)),
    "optimised": jpeg(optimize=True),
    "a long colour profile": jpeg(icc_profile=b"x" * 100_000),
    "a comment": jpeg(comment=b"hello" * 100),
    "a thumbnail cut off in its EXIF data": jpeg(exif=b"Exif\0\0" + PLAIN[: len(PLAIN) // 2]),
    "bytes after its end": PLAIN + b"garbage" * 99,
    "a second picture after its end": PLAIN + jpeg(progressive=True),
    "no end marker": PLAIN[:-2],
    "half an end marker": PLAIN[:-1],
    "zeros before its end": PLAIN[:-2] + bytes(20) + PLAIN[-2:],
    "fill bytes before its end": PLAIN[:-2] + b"\xff" * 20 + PLAIN[-2:],
    "an unknown version of JFIF": PLAIN.replace(b"JFIF\0\1\1", b"JFIF\0\2\1"),
    "an unknown transform of Adobe": adobe(CMYK, 7),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_jpeg_is_read_as_pillow_reads_it(name, tmp_path):
    (tmp_path / "a.jpg").write_bytes(SOUND[name])
    data = SOUND[name] + b"\xff\xd9" if "end marker" in name else SOUND[name]
    assert np.array_equal(read_image(tmp_path / "a.jpg"), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_a_jpeg_in_another_colour_order_shows_its_number(tmp_path):
    image = Image.frombytes("L", (64, 64), picture(NUMBER)).resize((256, 256), Image.Resampling.NEAREST)
    image.save(tmp_path / "a.jpg")
    assert number_in(read_image(tmp_path / "a.jpg")) == NUMBER


@pytest.mark.parametrize("name", ["plain", "progressive", "restart markers in each row", "grey", "CMYK", "4:4:4"])
def test_forty_damaged_bytes_are_noticed(name, tmp_path):
    """Damage that leaves the length of the picture is undetectable: up to half of the damaged files."""
    rng, noticed, rounds, first = random.Random(4), 0, 40, 1000
    for _ in range(rounds):
        data = bytearray(SOUND[name])
        at = rng.randrange(first, len(data) - 100)
        data[at : at + 40] = rng.randbytes(40)
        (tmp_path / "a.jpg").write_bytes(data)
        try:
            read_image(tmp_path / "a.jpg")
        except MediaError:
            noticed += 1
    assert noticed > rounds / 3


def test_a_truncated_jpeg_is_damaged(tmp_path):
    (tmp_path / "a.jpg").write_bytes(PLAIN[: len(PLAIN) * 2 // 3])
    with pytest.raises(MediaError, match=r"a\.jpg: damaged \(Corrupt JPEG data: premature end"):
        read_image(tmp_path / "a.jpg")
