"""What is watched while it comes has the frames of the finished file; M pictures, N frames."""

import os
import struct
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from ma2mba.video import live
from ma2mba.video.blocks import read_frames
from ma2mba.video.errors import MediaError
from ma2mba.video.live import LiveStream, Notice
from ma2mba.video.live_source import Pace, Source
from tests.unit.video.live_files import TICKS, growing, mpegts, piped
from tests.unit.video.numbered_video import X264, write
from tests.unit.video.rtsp_server import serve

SIZE = 32
MS = Fraction(1, 1000)
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
IDLE = 1.5


def uneven(path: Path) -> Path:
    write(path, [0, 400, 1000, 1001, 3700, 4000, 9100, 9200, 9900, 10000], MS, format="matroska")
    return path


def fragmented(path: Path) -> Path:
    write(path, [200 * k for k in range(37)], MS, format="mp4", container_options=FRAGMENTS)
    return path


SOURCES: dict[str, Callable[[Path], Path]] = {"ts": mpegts, "mkv": uneven, "mp4": fragmented}


def watch(name: object, idle: float = IDLE) -> tuple[list[np.ndarray], list[str], LiveStream]:
    """Return the picture of each second, the notices, and the stream after its end."""
    with LiveStream(str(name), idle) as stream:
        stream.begin(SIZE)
        return *collected(stream), stream


def collected(stream: LiveStream) -> tuple[list[np.ndarray], list[str]]:
    shown, notices = [], []
    for item in stream:
        if isinstance(item, Notice):
            notices.append(item.text)
            continue
        assert item.second == len(shown)
        shown += [item.picture_CHW] * item.count
    return shown, notices


def assert_same(shown: list[np.ndarray], path: Path) -> None:
    found = read_frames(path, SIZE)
    assert len(shown) == len(found.shown_N)
    assert np.array_equal(np.stack(shown), found.pictures_MCHW[found.shown_N])


@pytest.mark.parametrize("kind", SOURCES)
def test_a_file_that_grows_has_the_frames_of_the_finished_file(kind, tmp_path):
    whole = SOURCES[kind](tmp_path / f"whole.{kind}")
    with growing(whole, tmp_path / f"growing.{kind}") as path:
        shown, notices, stream = watch(path)
    assert_same(shown, whole)
    assert notices == []
    assert stream.ended.reason == "nothing came for 1.5 s"
    assert stream.ended.damage == ""


@pytest.mark.parametrize("kind", SOURCES)
def test_a_pipe_has_the_frames_of_the_file(kind, tmp_path):
    whole = SOURCES[kind](tmp_path / f"whole.{kind}")
    with piped(whole.read_bytes()):
        shown, _, stream = watch("-", idle=30)
    assert_same(shown, whole)
    assert stream.ended.reason == "it ended"


def test_a_picture_comes_as_soon_as_its_second_has_passed(tmp_path):
    """The writer stops after half of the bytes: what they show has come before it goes on."""
    content = mpegts(tmp_path / "whole.ts", seconds=20).read_bytes()
    path = tmp_path / "growing.ts"
    path.write_bytes(content[: len(content) // 2])
    with LiveStream(str(path), 20) as stream:
        stream.begin(SIZE)
        items = iter(stream)
        seconds = [next(items).second for _ in range(7)]
        with open(path, "ab") as file:
            file.write(content[len(content) // 2 :])
        seconds += [next(items).second for _ in range(10)]
    assert seconds == list(range(17))


def test_rtsp_has_the_frames_of_the_file(tmp_path):
    whole = mpegts(tmp_path / "whole.ts")
    with serve(whole.read_bytes()) as server:
        shown, _, stream = watch(f"rtsp://user:secret@127.0.0.1:{server.port}/cam?key=secret", idle=3)
    found = read_frames(whole, SIZE)  # FFmpeg drops the last packet: nothing says that it is complete
    assert np.array_equal(np.stack(shown[:8]), found.pictures_MCHW)
    assert "interleaved" in server.transport
    assert stream.name == f"rtsp://127.0.0.1:{server.port}/cam"


def test_rtsp_may_begin_between_key_frames(tmp_path):
    content = mpegts(tmp_path / "whole.ts", 16, options=X264 | {"g": "20"}).read_bytes()
    cut = tmp_path / "cut.ts"
    cut.write_bytes(content[len(content) // 188 // 5 * 188 :])
    with serve(cut.read_bytes()) as server:
        shown, _, stream = watch(f"rtsp://127.0.0.1:{server.port}/", idle=3)
    found = read_frames(cut, SIZE)
    assert 8 < len(found.shown_N) < 16
    assert np.array_equal(np.stack(shown[: len(found.shown_N)]), found.pictures_MCHW[found.shown_N])
    assert stream.ended.damage == ""


def test_rtsp_without_a_server_is_refused():
    with pytest.raises(MediaError, match="Connection refused") as caught:
        watch("rtsp://user:secret@127.0.0.1:1/cam")
    assert "secret" not in str(caught.value)


def test_rtsp_that_stops_ends_after_the_idle_time(tmp_path):
    content = mpegts(tmp_path / "whole.ts").read_bytes()
    with serve(content, ends=False) as server:
        began = time.monotonic()
        shown, _, stream = watch(f"rtsp://127.0.0.1:{server.port}/", idle=3)
    assert len(shown) in (7, 8)
    assert stream.ended.reason == "nothing came for 3 s"
    assert time.monotonic() - began < 20


def test_a_clock_that_restarts_is_joined_and_told(tmp_path):
    one, two = mpegts(tmp_path / "one.ts"), tmp_path / "two.ts"
    write(two, [18_000 * k for k in range(20)], TICKS, format="mpegts")
    both = tmp_path / "both.ts"
    both.write_bytes(one.read_bytes() + two.read_bytes())
    shown, notices, _ = watch(both)
    assert_same(shown, both)
    assert notices == ["its clock jumps after 8 s. The seconds count on without the jump"]


def test_a_gap_is_a_long_frame_and_told(tmp_path):
    write(tmp_path / "gap.mkv", [0, 1000, 2000, 60_000, 61_000], MS, codec="mpeg4", options={})
    shown, notices, _ = watch(tmp_path / "gap.mkv")
    assert_same(shown, tmp_path / "gap.mkv")
    assert notices == ["no frame for 58 s after 2 s. The last one is shown meanwhile"]


def test_a_gap_of_days_ends_the_watching(tmp_path):
    write(tmp_path / "gap.mkv", [0, 1000, 2000, 200_000_000], MS)
    shown, _, stream = watch(tmp_path / "gap.mkv")
    assert len(shown) == 3
    assert "its clock jumps by 56 hours after 2 s" in stream.ended.damage
    assert "MA2MBA_LIMIT_VIDEO_HOURS" in stream.ended.remedy


def test_damage_ends_the_watching_after_the_frames_before_it(tmp_path):
    whole = read_frames(mpegts(tmp_path / "a.ts", 30), SIZE)
    content = bytearray((tmp_path / "a.ts").read_bytes())
    for at in range(len(content) // 2, len(content) // 2 + 188 * 6, 188):
        content[at + 20 : at + 180] = bytes(160)
    with piped(bytes(content)):
        shown, _, stream = watch("-")
    assert 5 < len(shown) < 30
    assert np.array_equal(np.stack(shown), whole.pictures_MCHW[whole.shown_N[: len(shown)]])
    assert "damaged" in stream.ended.damage


def test_a_file_that_ends_within_a_fragment_is_damaged(tmp_path):
    content = fragmented(tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(content[:-20])  # in the index after the last fragment
    shown, _, stream = watch(tmp_path / "a.mp4")
    assert len(shown) == 8
    assert stream.ended.damage == "truncated: 20 bytes are missing at its end"


@pytest.mark.parametrize("content", [b"", bytes(1 << 16), os.urandom(1 << 16), b"hello\n" * 1000], ids="enrt")
def test_garbage_is_refused(content):
    with piped(content), pytest.raises(MediaError, match="standard input: not a readable stream of video"):
        watch("-")


@pytest.mark.parametrize(
    "text",
    ["#EXTM3U\n#EXTINF:9,\n{}\n", "ffconcat version 1.0\nfile {}\n", "v=0\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 33\n"],
)
def test_playlists_are_refused(tmp_path, text):
    victim = mpegts(tmp_path / "victim.ts")
    (tmp_path / "list").write_text(text.format(victim))
    with pytest.raises(MediaError, match="not a readable stream of video"):
        watch(tmp_path / "list")


def test_an_mp4_file_with_its_index_at_the_end_is_refused(tmp_path):
    write(tmp_path / "a.mp4", [200 * k for k in range(37)], MS)
    content = (tmp_path / "a.mp4").read_bytes()
    at = content.rindex(b"moov") - 4  # a megabyte before the index: FFmpeg holds the last few kilobytes
    (tmp_path / "a.mp4").write_bytes(content[:at] + struct.pack(">I4s", 1 << 20, b"free").ljust(1 << 20) + content[at:])
    with pytest.raises(MediaError, match=r"only if it is fragmented.*Send MPEG-TS, Matroska or fragmented MP4"):
        watch(tmp_path / "a.mp4")


def test_a_file_that_becomes_shorter_ends(tmp_path):
    path = mpegts(tmp_path / "a.ts")
    with LiveStream(str(path), 20) as stream:
        stream.begin(SIZE)
        items = iter(stream)
        next(items)
        os.truncate(path, 1000)
        for _ in items:
            pass
    assert stream.ended.damage == "the file became shorter while it was watched"


@pytest.mark.parametrize("name", ["none.ts", ".", "fifo", "http://127.0.0.1/a.ts", "file:a.ts", "rtp://127.0.0.1:9"])
def test_what_is_no_live_source_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    with pytest.raises(MediaError, match=r"no such file|not a regular file"):
        LiveStream(name, IDLE)


def test_a_decoder_that_crashes_ends_the_watching(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "watch_item", crash_item)
    with pytest.raises(MediaError, match=r"crashed \(exit code 7\)"):
        watch(mpegts(tmp_path / "a.ts"))


def crash_item(task, begin, beat):
    begin(0)
    if task.given_up:
        return live.Ended(task.given_up[0], task.given_up[0])
    os._exit(7)


def test_the_source_waits_while_nobody_reads(tmp_path):
    """A worker that went on would hold 23 MB of pictures, and more of a longer stream."""
    content = mpegts(tmp_path / "a.ts", seconds=300, fps=1).read_bytes()
    with piped(content) as sent, LiveStream("-", 5) as stream:
        stream.begin(160)
        items = iter(stream)
        next(items)
        time.sleep(2)
        assert sent() < len(content) / 2
        assert sum(1 for _ in items) == 299
        assert sent() == len(content)


def test_a_source_that_waits_for_nobody_falls_behind():
    pace = Pace()
    assert pace.lag(0, waited=True) == 0
    time.sleep(0.2)
    assert pace.lag(0, waited=False) == pytest.approx(0.2, abs=0.1)
    assert pace.lag(5, waited=False) == 0
    assert pace.lag(5, waited=True) == 0


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtsp://a:b@host:554/x?token=c", "rtsp://host:554/x"),
        ("rtsp://host?token=c", "rtsp://host"),
        ("rtsp://[::1", "rtsp://[::1"),
        ("rtsp://a:b@c@host/x/@y", "rtsp://host/x/@y"),
    ],
)
def test_a_password_is_not_shown(url, shown):
    assert Source(url, 1).shown == shown
