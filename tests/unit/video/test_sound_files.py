"""Odd but sound pictures and videos are read: unusual containers, codecs, pixel formats, sizes and names."""

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from ma2mba.video.blocks import read_frames
from ma2mba.video.decode import decode_video
from ma2mba.video.pictures import clip_view, read_image
from tests.unit.video.numbered_video import number_in, write

RATE, COUNT = Fraction(1, 25), 20
X265 = {"options": {"x265-params": "log-level=none:pools=none:frame-threads=1"}}
SVT = {"options": {"svtav1-params": "lp=1"}}
VIDEOS = {
    "a.mp4": {},
    "a.mov": {},
    "a.3gp": {},
    "a.3g2": {},
    "a.m4v": {"format": "ipod"},
    "a.f4v": {"format": "f4v"},
    "a.ismv": {"format": "ismv"},
    "a.mkv": {},
    "a.avi": {},
    "a.ts": {},
    "a.m2ts": {"format": "mpegts"},
    "a.nut": {},
    "a.asf": {},
    "a.wtv": {},
    "4_2_2.mkv": {"pix_fmt": "yuv422p"},
    "4_4_4.mkv": {"pix_fmt": "yuv444p"},
    "10_bit.mkv": {"pix_fmt": "yuv420p10le"},
    "nv12.mkv": {"pix_fmt": "nv12"},
    "grey.mkv": {"pix_fmt": "gray"},
    "full_range.mp4": {"pix_fmt": "yuvj420p"},
    "rgb.mkv": {"codec": "libx264rgb", "pix_fmt": "rgb24"},
    "hevc.mp4": {"codec": "libx265"} | X265,
    "hevc_12.mkv": {"codec": "libx265", "pix_fmt": "yuv422p12le"} | X265,
    "vp8.webm": {"codec": "libvpx", "options": {}},
    "vp8.ivf": {"codec": "libvpx", "options": {}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {}},
    "vp9_alpha.webm": {"codec": "libvpx-vp9", "pix_fmt": "yuva420p", "options": {}},
    "av1.mp4": {"codec": "libsvtav1"} | SVT,
    "av1.obu": {"codec": "libsvtav1"} | SVT,
    "av1.ivf": {"codec": "libsvtav1"} | SVT,
    "mpeg4.avi": {"codec": "mpeg4", "options": {}},
    "raw.m4v": {"codec": "mpeg4", "options": {}, "format": "m4v"},
    "ms.avi": {"codec": "msmpeg4", "options": {}},
    "mpeg1.mpg": {"codec": "mpeg1video", "options": {}},
    "mpeg2.vob": {"codec": "mpeg2video", "options": {}},
    "mpeg2.m2v": {"codec": "mpeg2video", "options": {}, "format": "mpeg2video"},
    "mpeg2.mxf": {"codec": "mpeg2video", "options": {}},
    "wmv1.wmv": {"codec": "wmv1", "options": {}, "format": "asf"},
    "wmv2.wmv": {"codec": "wmv2", "options": {}, "format": "asf"},
    "sorenson.flv": {"codec": "flv", "options": {}},
    "flash.swf": {"codec": "flv", "options": {}},
    "real.rm": {"codec": "rv20", "options": {}},
    "motion.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p", "options": {}},
    "raw.mjpeg": {"codec": "mjpeg", "pix_fmt": "yuvj420p", "options": {}},
    "prores.mov": {"codec": "prores_ks", "pix_fmt": "yuv422p10le", "options": {}},
    "png.mov": {"codec": "png", "pix_fmt": "rgba", "options": {}},
    "runs.mov": {"codec": "qtrle", "pix_fmt": "rgb24", "options": {}},
    "grey_16.mkv": {"codec": "ffv1", "pix_fmt": "gray16le", "options": {}},
    "rgb_48.mkv": {"codec": "ffv1", "pix_fmt": "rgb48le", "options": {}},
    "raw.avi": {"codec": "rawvideo", "pix_fmt": "bgr24", "options": {}},
    "raw.y4m": {"codec": "rawvideo", "options": {}},
    "moving.gif": {"codec": "gif", "pix_fmt": "rgb8", "options": {}},
    "moving.apng": {"codec": "apng", "pix_fmt": "rgb24", "options": {}},
    "odd.mp4": {"size": (161, 33), "pix_fmt": "yuv444p"},
    "low.mkv": {"codec": "ffv1", "size": (6000, 32), "options": {}},
    "noise": {"format": "mp4"},
    "clip.txt": {"format": "mp4"},
    "clip.m3u8": {"format": "mp4"},
    "12:30 news.mp4": {},
    "-i.mp4": {},
    "pipe:0": {"format": "mp4"},
    "concat:a.mp4|a.mkv": {"format": "mp4"},
    "data:x.mp4": {"format": "mp4"},
    "file:a.mp4": {"format": "mp4"},
    "part%03d.mp4": {"format": "mp4"},
    "a?b#c*[d].mp4": {"format": "mp4"},
    "video élan 视频.mp4": {"format": "mp4"},
}


@pytest.mark.parametrize("name", VIDEOS)
def test_an_odd_video_is_read(name, tmp_path, monkeypatch):
    """Also by a relative path."""
    write(tmp_path / "made", range(COUNT), RATE, **({"format": _muxer(name)} | VIDEOS[name]))
    os.rename(tmp_path / "made", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    decoded = decode_video(Path(name), number_in, fps=5.0)
    assert [sample.value for sample in decoded.samples][:4] == [0, 5, 10, 15]
    assert read_frames(Path(name), 32).frames_NHWC.shape == (1, 32, 32, 3)


def _muxer(name: str) -> str | None:
    """Return FFmpeg's name of the muxer for a file name, which cannot be guessed from "made"."""
    given = {"mkv": "matroska", "ts": "mpegts", "mpg": "mpeg", "wmv": "asf", "y4m": "yuv4mpegpipe"}
    suffix = name.rpartition(".")[2]
    return given.get(suffix, suffix)


def test_a_folder_named_like_a_web_address(tmp_path, monkeypatch):
    (tmp_path / "http:/127.0.0.1:1").mkdir(parents=True)
    write(tmp_path / "http:/127.0.0.1:1/a.mp4", range(COUNT), RATE)
    monkeypatch.chdir(tmp_path)
    assert decode_video(Path("http://127.0.0.1:1/a.mp4"), number_in).samples[0].value == 0


def _halves(width: int, height: int) -> Image.Image:
    """Return a picture whose left half is black and whose right half is white."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, width // 2 :] = 255
    return Image.fromarray(pixels)


def _deep(path: Path, dtype: type, white: int) -> None:
    Image.fromarray((np.asarray(_halves(40, 24).convert("L")) // 255).astype(dtype) * white).save(path)


def _saved(mode: str = "RGB", size: tuple[int, int] = (40, 24), **options) -> Callable[[Path], None]:
    return lambda path: _halves(*size).convert(mode).save(path, **options)


def _lab(path: Path) -> None:
    neutral = Image.new("L", (40, 24), 128)
    Image.merge("LAB", [_halves(40, 24).convert("L"), neutral, neutral]).save(path)


def _turned(path: Path) -> None:
    image = _halves(40, 24).transpose(Image.Transpose.ROTATE_90)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)


def _moving(path: Path) -> None:
    image = _halves(40, 24)
    image.save(path, save_all=True, append_images=[image.transpose(Image.Transpose.ROTATE_180)], duration=100)


PICTURES = {
    "plain.png": _saved(),
    "plain.jpg": _saved(),
    "plain.webp": _saved(lossless=True),
    "plain.bmp": _saved(),
    "plain.gif": _saved(),
    "plain.tiff": _saved(),
    "plain.jp2": _saved(),
    "plain.ppm": _saved(),
    "plain.tga": _saved(),
    "plain.ico": _saved(),
    "plain.pcx": _saved(),
    "plain.sgi": _saved(),
    "plain.dds": _saved(),
    "progressive.jpg": _saved(progressive=True),
    "smooth.jpg": _saved(subsampling="4:1:1"),
    "cmyk.jpg": _saved("CMYK"),
    "grey.jpg": _saved("L"),
    "cmyk.tiff": _saved("CMYK"),
    "lab.tiff": _lab,
    "lzw.tiff": _saved(compression="tiff_lzw"),
    "jpeg.tiff": _saved(compression="jpeg"),
    "bits.tiff": _saved("1", compression="group4"),
    "palette.png": _saved("P"),
    "alpha.png": _saved("RGBA"),
    "grey_alpha.png": _saved("LA"),
    "bits.png": _saved("1"),
    "grey_16.png": lambda path: _deep(path, np.uint16, 65535),
    "grey_32.tiff": lambda path: _deep(path, np.int32, 65535),
    "palette.bmp": _saved("P"),
    "turned.jpg": _turned,
    "moving.gif": _moving,
    "moving.png": _moving,
    "moving.webp": _moving,
    "one.png": _saved(size=(40, 1)),
    "wide.png": _saved(size=(190, 1)),
    "tall.png": _saved(size=(2, 350)),
    "no suffix": _saved(format="PNG"),
    "jpeg.png": _saved(format="JPEG"),
    "12:30%03d|x.png": _saved(),
}

Image.init()
if "AVIF" in Image.SAVE:  # Pillow 11.0 to 11.2 cannot write it
    PICTURES["plain.avif"] = _saved()


@pytest.mark.parametrize("name", PICTURES)
def test_an_odd_picture_is_read(name, tmp_path):
    path = tmp_path / name
    PICTURES[name](path)
    pixels = read_image(path).astype(int)
    height, width = pixels.shape[:2]
    assert pixels[height // 2, 0].max() < 40
    assert pixels[height // 2, width - 1].min() > 215
    assert clip_view(pixels.astype(np.uint8), 32).shape == (32, 32, 3)


def test_there_are_enough():
    assert len(VIDEOS) + len(PICTURES) >= 100


def test_a_large_picture_has_the_bytes_of_a_single_conversion(tmp_path):
    """Pictures are converted in strips of rows."""
    pixels = np.random.default_rng(0).integers(0, 256, (700, 31, 3), dtype=np.uint8)
    for mode in ("RGB", "P", "CMYK", "L"):
        image = Image.fromarray(pixels).convert(mode)
        image.save(tmp_path / "a.tiff")
        assert np.array_equal(read_image(tmp_path / "a.tiff"), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("shape", [(4, 700), (700, 4), (3, 401), (97, 9001), (9001, 97), (1, 200)])
def test_the_centre_of_a_thin_picture_alone_is_resized(shape, monkeypatch):
    """The same view within one grey level; Pillow rounds between the two axes, and chooses which one is first."""
    rows, columns = np.indices(shape)
    pixels = np.stack([rows % 256, columns % 256, (rows + columns) // 2 % 256], -1).astype(np.uint8)
    pixels = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(3)))
    whole = clip_view(pixels, 64)
    monkeypatch.setattr("ma2mba.video.pictures.LARGEST_RESIZED", 10_000)
    assert np.abs(clip_view(pixels, 64).astype(int) - whole).max() <= 1
