"""Media open nothing but themselves, and cost little before they are refused."""

import os
import socket
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from ma2mba.errors import UserError
from ma2mba.limits import limits
from ma2mba.video.decode import decode_video
from ma2mba.video.frames import FrameReader
from ma2mba.video.pictures import read_image
from tests.attacks.media_files import (
    EPS,
    FRAME,
    alias,
    attach,
    box,
    chunk,
    compressed_header,
    icon,
    jpeg,
    movie,
    png,
    tiff,
    zeros,
)
from tests.forked import Outcome, call
from tests.unit.video.numbered_video import number_in, write
from tests.unit.video.test_odd_files import small_build

HEAD = "#EXTM3U\n#EXT-X-TARGETDURATION:3\n"
SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 32\n"
TEXT = "All rights reserved. Permission is granted to nobody.\n" * 40
URL = "http://127.0.0.1:{port}/a.ts"


@pytest.fixture
def port():
    """A port on loopback that nobody may connect to."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def read(use: Callable[[], object], folder: Path | None = None) -> Outcome:
    """Run `use` in a forked child that ends as a command does."""

    def work() -> None:
        try:
            print(use())
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from error

    return call(work, folder, limit_s=60)


def numbers(path: Path) -> list[int]:
    return [sample.value for sample in decode_video(path, number_in).samples]


def text(content: str) -> Callable[[Path, int], object]:
    return lambda path, port: path.write_text(content.replace("{port}", str(port)))


def data(content: Callable[[Path], bytes]) -> Callable[[Path, int], object]:
    return lambda path, port: path.write_bytes(content(path))


def named(where: str) -> bytes:
    return box(b"url ", bytes(4), where.encode(), b"\0")


VIDEOS = {
    "remote.m3u8": (text(f"{HEAD}#EXTINF:3,\n{URL}\n#EXT-X-ENDLIST\n"), "a playlist (HLS)"),
    "local.m3u8": (text(f"{HEAD}#EXTINF:3,\nsecret.ts\n#EXT-X-ENDLIST\n"), "a playlist (HLS)"),
    "live.m3u8": (text(f"{HEAD}#EXTINF:3,\nsecret.ts\n"), "a playlist (HLS)"),
    "playlist.mp4": (text(f"{HEAD}#EXTINF:3,\n{URL}\n#EXT-X-ENDLIST\n"), ""),
    "list.ffconcat": (text("ffconcat version 1.0\nfile secret.ts\n"), "a list of files (ffconcat)"),
    "list.mp4": (text("ffconcat version 1.0\nfile secret.ts\n"), "a list of files (ffconcat)"),
    "stream.sdp": (text(SDP), "a description of a network stream (SDP)"),
    "metadata.mp4": (text(";FFMETADATA1\ntitle=x\n"), "a list of metadata"),
    "dash.mpd": (text(f'<?xml version="1.0"?><MPD><BaseURL>{URL}</BaseURL></MPD>'), ""),
    "licence.txt": (text(TEXT), "text, not a video"),
    "release.nfo": (text(TEXT), "text, not a video"),
    "art.ans": (text("\x1b[31m" + TEXT), "text, not a video"),
    "LICENSE": (text(TEXT), ""),
    "subtitles.srt": (text("1\n00:00:00,000 --> 00:00:02,000\nHello\n\n" * 9), "it has no video stream"),
    "remote.mov": (data(lambda path: movie(named("http://127.0.0.1/a.mov"))), "a reference movie"),
    "local.mov": (data(lambda path: movie(alias(path.parent / "secret.ts"))), "a reference movie"),
    "list.mov": (data(lambda path: box(b"moov", box(b"rmra", box(b"rmda", b"")))), "a reference movie"),
    "samples.mov": (data(lambda path: movie(samples=30_000_000)), ""),
    "more_samples.mov": (data(lambda path: movie(samples=(1 << 31) - 1)), ""),
    "tracks.mov": (data(lambda path: movie(tracks=101)), "it has more than 100 streams"),
    "inflates.mov": (data(lambda path: compressed_header()), "reading it takes more than 550 MB"),
    "attached.mkv": (lambda path, port: attach(path, 300_000_000), "its attachments of 300 MB are larger than 64 MB"),
    "much_attached.mkv": (lambda path, port: attach(path, 20_000_000_000), "its attachments of 20,000 MB"),
    "large.y4m": (text("YUV4MPEG2 W20000 H20000 F25:1 Ip C420\nFRAME\n" + "a" * 900), ""),
    "thin.y4m": (text("YUV4MPEG2 W64000 H16 F25:1 Ip C420\n" + ("FRAME\n" + "a" * 64000 * 24) * 3), "200 times longer"),
    "years.mkv": (lambda path, port: write(path, [0, 10**9], FRAME), "its frames span"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a video that nothing may show: its frames are numbered from 512."""
    folder = tmp_path_factory.mktemp("media")
    write(folder / "secret.ts", range(600), FRAME)
    return folder


@pytest.mark.parametrize("name", VIDEOS)
def test_a_video_opens_nothing_else_and_costs_little(name, folder, port):
    make, reason = VIDEOS[name]
    make(folder / name, port)
    outcome = read(lambda: numbers(folder / name))
    assert outcome.refused, (outcome.out, outcome.err)
    assert name in outcome.err
    assert reason in outcome.err
    assert outcome.peak_mb < 1000
    assert outcome.seconds < 30


@pytest.mark.parametrize(
    "name",
    ["http:/127.0.0.1:{port}/a.mp4", "rtsp:/127.0.0.1:{port}/a.mp4", "tcp:/127.0.0.1:{port}", "concat:secret.ts"],
)
def test_a_name_is_never_an_address(name, folder, port):
    name = name.replace("{port}", str(port))
    missing = read(lambda: numbers(Path(name)), folder)
    assert missing.refused
    assert "no such file" in missing.err
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    write(folder / "made.mp4", range(30), FRAME)
    os.rename(folder / "made.mp4", folder / name)
    assert read(lambda: numbers(Path(name)), folder).out == "[0, 25]\n"


def test_a_build_rejects_each_of_them_and_opens_nothing_else(folder, port, tmp_path):
    for name, (make, _) in VIDEOS.items():
        make(folder / name, port)
    write(folder / "fine.mp4", range(30), FRAME)
    report, rejects = small_build(tmp_path, folder, [*VIDEOS, "fine.mp4"], {})
    assert {reject.media for reject in rejects} == set(VIDEOS)
    assert report["samples"] == 1


def inflating(kind: bytes, head: bytes) -> Callable[[Path, int], object]:
    return data(lambda path: png(64, 64, chunk(kind, head + zeros(1024))))


def claims(size: int, start: bytes) -> Callable[[Path, int], object]:
    """Write a file of which all but the start takes no room on the disk."""

    def make(path: Path, port: int) -> None:
        path.write_bytes(start)
        os.truncate(path, size)

    return make


WEBP = b"RIFF\xf0\xff\xff\xffWEBPVP8X\x0a\0\0\0\2\0\0\0?\0\0?\0\0"
GIF = b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\2D\1\0;"
PICTURES = {
    "eps.png": (data(lambda path: EPS), "not a readable image"),
    "eps.jpg": (data(lambda path: EPS), "not a readable image"),
    "windows.png": (data(lambda path: struct.pack("<I", 0x9AC6CDD7) + bytes(100)), "not a readable image"),
    "large.png": (data(lambda path: png(60_000, 60_000)), "more than 100 megapixels"),
    "just_larger.png": (data(lambda path: png(10_001, 10_000)), "more than 100 megapixels"),
    "thin.png": (data(lambda path: png(1, 1_000_000)), "more than 200 times longer"),
    "wide.png": (data(lambda path: png(60_000, 1)), "more than 200 times longer"),
    "text.png": (inflating(b"zTXt", b"a\0\0"), "too large"),
    "profile.png": (inflating(b"iCCP", b"a\0\0"), "too large"),
    "words.png": (inflating(b"iTXt", b"a\0\1\0\0\0"), "too large"),
    "large.gif": (data(lambda path: GIF), "more than 100 megapixels"),
    "large.jpg": (data(lambda path: jpeg(60_000)), "more than 100 megapixels"),
    "large.ppm": (data(lambda path: b"P6 60000 60000 255\n"), "more than 100 megapixels"),
    "inner.ico": (data(lambda path: icon(png(20_000, 20_000))), "more than 100 megapixels"),
    "tag.tiff": (claims(501_000_000, tiff((700, 1, 500_000_000, 300))), "takes more than 550 MB"),
    "numbers.tiff": (claims(500_000_000, tiff((60000, 3, 240_000_000, 300))), "takes more than 550 MB"),
    "strips.tiff": (claims(500_000_000, tiff((273, 4, 60_000_000, 300))), "takes more than 550 MB"),
    "large_file.tiff": (claims(4_000_000_000, tiff()), "its 4,000 MB are more than 512 MB"),
    "large_file.webp": (claims(4_000_000_000, WEBP), "its 4,000 MB are more than 512 MB"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_starts_no_program_and_costs_little(name, tmp_path, monkeypatch):
    """A fake `gs`, the interpreter that Pillow starts for PostScript, would leave a file."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\necho ran >> {tmp_path}/ran\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    make, reason = PICTURES[name]
    make(tmp_path / name, 0)
    outcome = read(lambda: read_image(tmp_path / name).shape)
    assert outcome.refused, (outcome.out, outcome.err)
    assert name in outcome.err
    assert reason in outcome.err
    assert outcome.peak_mb < 1000
    assert not (tmp_path / "ran").exists()


def test_a_file_that_ffmpeg_searches_for_hours_is_given_up(tmp_path, monkeypatch):
    """100 GB of zeros, which take no room on the disk, after the start of a Matroska file."""
    attach(tmp_path / "a.mkv", 10)
    os.truncate(tmp_path / "a.mkv", 100)
    os.truncate(tmp_path / "a.mkv", 100_000_000_000)
    monkeypatch.setattr("ma2mba.video.pyav.OPENING", 1.0)
    outcome = read(lambda: numbers(tmp_path / "a.mkv"))
    assert outcome.refused
    assert "finding its next part takes more than 1 s" in outcome.err
    assert outcome.peak_mb < 1000


def test_a_file_that_ffmpeg_searches_for_hours_after_its_frames_is_given_up(tmp_path, monkeypatch):
    write(tmp_path / "a.mkv", range(30), FRAME, codec="mpeg4", options={})
    os.truncate(tmp_path / "a.mkv", 1 << 40)
    monkeypatch.setattr("ma2mba.video.pyav.OPENING", 1.0)
    outcome = read(lambda: numbers(tmp_path / "a.mkv"))
    assert outcome.refused, outcome
    assert "finding its next part takes more than 1 s" in outcome.err
    assert outcome.seconds < 30


def test_boxes_in_boxes_are_not_followed_for_ever(tmp_path):
    content = b""
    for number in range(5000):
        content = box((b"trak", b"mdia")[number % 2], content)
    (tmp_path / "deep.mp4").write_bytes(box(b"ftyp", b"isom\0\0\0\0isom") + box(b"moov", content))
    outcome = read(lambda: numbers(tmp_path / "deep.mp4"))
    assert outcome.refused, outcome.err


def test_a_colour_profile_of_megabytes_is_read(tmp_path):
    profile = zlib.compress(bytes(3_000_000))
    (tmp_path / "a.png").write_bytes(png(8, 8, chunk(b"iCCP", b"a\0\0" + profile)))
    assert read_image(tmp_path / "a.png").shape == (8, 8, 3)


def test_a_library_writes_nothing_beside_the_error(tmp_path, capfd):
    """libtiff would write a line of its own on the terminal."""
    (tmp_path / "a.png").write_bytes(tiff((259, 3, 1, 7)))
    with FrameReader() as reader, pytest.raises(UserError):
        reader.read(tmp_path / "a.png", 56)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("use", [numbers, read_image])
def test_what_is_no_regular_file_is_refused_at_once(use, tmp_path):
    os.mkfifo(tmp_path / "fifo.mp4")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    (tmp_path / "gone.mp4").symlink_to("nowhere")
    (tmp_path / "zero.mp4").symlink_to("/dev/zero")
    (tmp_path / "folder.mp4").mkdir()
    for name in ("fifo", "loop", "gone", "zero", "folder"):
        outcome = read(lambda name=name: use(tmp_path / f"{name}.mp4"))
        assert outcome.refused, outcome.err
        assert outcome.seconds < 5


def test_a_frame_that_grows_within_the_stream_is_refused(tmp_path, monkeypatch):
    for name, size in (("small.ts", (160, 32)), ("large.ts", (1280, 720))):
        write(tmp_path / name, range(30), FRAME, codec="mpeg2video", options={"b": "2000000"}, size=size)
    (tmp_path / "grows.ts").write_bytes((tmp_path / "small.ts").read_bytes() + (tmp_path / "large.ts").read_bytes())
    monkeypatch.setenv("MA2MBA_LIMIT_MEGAPIXELS", "0.5")
    limits.cache_clear()
    outcome = read(lambda: numbers(tmp_path / "large.ts"))
    assert "megapixels. Set MA2MBA_LIMIT_MEGAPIXELS" in outcome.err
    assert not read(lambda: decode_video(tmp_path / "grows.ts", lambda picture: picture.shape, fps=25)).out.count(
        "1280"
    )
    limits.cache_clear()


@pytest.mark.parametrize(
    ("variable", "value", "name"),
    [("STREAMS", "101", "tracks.mov"), ("ATTACHMENTS_MB", "100", "attached.mkv"), ("ASPECT", "5000", "thin.y4m")],
)
def test_a_limit_can_be_raised(variable, value, name, tmp_path, monkeypatch):
    """The file is then read, or another limit holds."""
    made = {
        "tracks.mov": lambda path: path.write_bytes(movie(tracks=101)),
        "attached.mkv": lambda path: attach(path, 65_000_000),
        "thin.y4m": lambda path: VIDEOS["thin.y4m"][0](path, 0),
    }
    made[name](tmp_path / name)
    refused = read(lambda: numbers(tmp_path / name))
    assert f"MA2MBA_LIMIT_{variable}" in refused.err
    monkeypatch.setenv(f"MA2MBA_LIMIT_{variable}", value)
    monkeypatch.setenv("MA2MBA_LIMIT_READING_MB", "2000")
    limits.cache_clear()
    outcome = read(lambda: decode_video(tmp_path / name, lambda picture: picture.shape))
    limits.cache_clear()
    assert (outcome.code, outcome.err) == (0, "")
