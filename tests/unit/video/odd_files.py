"""Damaged and unusual files: a description, how to make it, and the expected result."""

import os
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from PIL import Image

from tests.unit.video.numbered_video import expected, number_in, picture, write, write_cover, write_silence

MS, FRAME = Fraction(1, 1000), Fraction(1, 25)


@dataclass(frozen=True)
class Odd:
    """`make(path)` writes the file and returns the times of its frames; None if it has none.

    `reason`: why it is rejected; "" for an intact file. `kept`: with `on_damage: keep`, the frames before the damage
    are used.
    """

    name: str
    what: str
    make: Callable[[Path], list[Fraction] | None]
    reason: str = ""
    kept: bool = False
    unseen: int = 0
    """Seconds that are missing without a trace."""

    def rows(self) -> str:
        """Return the file's line in docs/data.md."""
        rejected = f"rejected: {self.reason}" if self.reason else "decoded exactly"
        kept = "partial: exact up to the damage" if self.kept else "the same"
        return f"| {self.what} | {rejected} | {kept} |"


def steady(**options) -> Callable[[Path], list[Fraction]]:
    """200 frames at 25 fps."""
    return lambda path: write(path, range(200), FRAME, **options)


def stamped(stamps: list[int], **options) -> Callable[[Path], list[Fraction]]:
    return lambda path: write(path, stamps, MS, **options)


def cut(share: float, form: str, **options) -> Callable[[Path], list[Fraction]]:
    """Keep the first `share` of a file."""

    def make(path: Path) -> list[Fraction]:
        times = write(path, range(500), FRAME, format=form, **options)
        os.truncate(path, int(path.stat().st_size * share))
        return times

    return make


def patched(make: Callable[[Path], list[Fraction] | None], change: Callable[[bytearray], None]):
    def patch(path: Path) -> list[Fraction] | None:
        times = make(path)
        data = bytearray(path.read_bytes())
        change(data)
        path.write_bytes(data)
        return times

    return patch


def irregular() -> list[int]:
    rng, stamps = random.Random(3), [0]
    while len(stamps) < 150:
        stamps.append(stamps[-1] + rng.choice([5, 33, 400]))
    return stamps


def hidden_start(path: Path) -> list[Fraction]:
    """An edit list in the mp4 hides the frames before time 0; the other frames keep their numbers."""
    times = write(path, range(-433, 7000, 40), MS)
    hidden = sum(t < Fraction(433, 1000) for t in times)
    return [Fraction(-1)] * hidden + [t - times[hidden] for t in times[hidden:]]


def turn(data: bytearray) -> None:
    """Write a rotation by 180 degrees into the matrix of the track's header."""
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", -0x10000, 0, 0, 0, -0x10000, 0, 160 << 16, 32 << 16, 0x40000000)


def declare_hours(data: bytearray) -> None:
    """Set Matroska's Duration to 100 hours, in ms."""
    at = data.index(b"\x44\x89\x88") + 3
    data[at : at + 8] = struct.pack(">d", 100 * 3600e3)


def unknown_codec(data: bytearray) -> None:
    at = data.index(b"avc1", data.index(b"stsd"))
    data[at : at + 4] = b"zzzz"


def zero_second_half(data: bytearray) -> None:
    half = len(data) // 2
    data[half:] = bytes(len(data) - half)


def damage_spots(data: bytearray) -> None:
    rng = random.Random(5)
    for at in range(len(data) // 2, len(data) * 7 // 10, len(data) // 30):
        data[at : at + 20] = rng.randbytes(20)


def break_tags(data: bytearray) -> None:
    """Make the writer's name in the tags invalid as UTF-8."""
    data[:] = data.replace(b"Lavf", b"L\xff\xfef")


def giant_pictures(side: int) -> Callable[[bytearray], None]:
    """Set every PNG header to side x side pixels of 16 bits with alpha."""

    def change(data: bytearray) -> None:
        at = data.find(b"IHDR")
        while at >= 0:
            data[at + 4 : at + 17] = struct.pack(">IIBBBBB", side, side, 16, 6, 0, 0, 0)
            data[at + 17 : at + 21] = struct.pack(">I", zlib.crc32(data[at : at + 17]))
            at = data.find(b"IHDR", at + 1)

    return change


def png_movie(path: Path) -> list[Fraction]:
    return write(path, range(3), Fraction(1), codec="png", options={}, pix_fmt="rgba64be")


def sound_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        write_silence(container, container.add_stream("aac", rate=16000), 2)


def still_picture(path: Path) -> None:
    Image.fromarray(picture(5)).save(path, format="PNG")


def plain(content: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(content) and None


HEVC = {"x265-params": "log-level=none:bframes=3:b-adapt=0:scenecut=0:keyint=48:pools=none:frame-threads=1"}
OPEN_GOP = {"x265-params": HEVC["x265-params"] + ":open-gop=1"}
FRONT, PIECES = {"movflags": "faststart"}, {"movflags": "frag_keyframe+empty_moov"}
SUBTITLES = "1\n00:00:00,000 --> 00:00:02,000\nHello\n\n" * 40
NOT_VIDEO = "not a readable video"

ODD = [
    Odd("empty.mp4", "0 bytes", lambda p: p.touch(), "the file is empty"),
    Odd("missing.mp4", "a file that does not exist", lambda p: None, "no such file"),
    Odd("folder.mp4", "a folder", lambda p: p.mkdir(), "not a regular file"),
    Odd("fifo.mp4", "a named pipe without a writer", lambda p: os.mkfifo(p), "not a regular file"),
    Odd("text.mp4", "text renamed to .mp4", plain("this is no video\n" * 200), NOT_VIDEO),
    Odd("subtitles.mp4", "subtitles renamed to .mp4", plain(SUBTITLES), "it has no video stream"),
    Odd("page.mp4", "a web page saved as .mp4", plain("<!DOCTYPE html><html>gone</html>" * 9), NOT_VIDEO),
    Odd("still.mp4", "a picture renamed to .mp4", still_picture, "a still picture, not a video"),
    Odd("sound.mp4", "no video stream", sound_only, "it has no video stream"),
    Odd("cover.mp4", "cover art and no video", write_cover, "its only picture is a cover"),
    Odd("covered.mp4", "cover art before the video", steady(cover=True)),
    Odd("codec.mp4", "an unknown video codec", patched(steady(), unknown_codec), "its video codec is unknown"),
    Odd("cut_back.mp4", "mp4 cut at 60%, index last", cut(0.6, "mp4"), NOT_VIDEO),
    Odd("cut_front.mp4", "mp4 cut at 60%, index first", cut(0.6, "mp4", container_options=FRONT), "truncated", True),
    Odd("cut_tail.mp4", "mp4 that lacks its last 1%", cut(0.99, "mp4", container_options=FRONT), "truncated", True),
    Odd("cut_pieces.mp4", "fragmented mp4 cut at 50%", cut(0.5, "mp4", container_options=PIECES), "truncated", True),
    Odd("cut.mkv", "Matroska cut at 60%", cut(0.6, "matroska"), "truncated", True),
    Odd("cut.avi", "AVI cut at 60%", cut(0.6, "avi"), "truncated", True),
    Odd("cut.ts", "MPEG-TS cut at 60% (the cut is undetectable)", cut(0.6, "mpegts"), unseen=9),
    Odd("zeros.mkv", "second half zeros: a download that stopped", patched(steady(), zero_second_half),
        "truncated", True),
    Odd("spots.mkv", "damaged in six spots", patched(steady(), damage_spots), "damaged", True),
    Odd("hours.mkv", "a header that declares 100 hours for 8 s of video", patched(steady(), declare_hours),
        "truncated", True),
    Odd("leap.mkv", "one frame with a time stamp of 12 days", stamped([*range(0, 4000, 40), 10**9]),
        "its frames span 278 hours"),
    Odd("bomb.mov", "frames of 9,000 x 9,000 pixels of 8 bytes each", patched(png_movie, giant_pictures(9000)),
        "needs more than"),
    Odd("giant.mov", "a header of 160 x 32 pixels, then frames of 16,000 x 16,000",
        patched(png_movie, giant_pictures(16000)), "more than 100 megapixels"),
    Odd("tags.mkv", "tags that are not UTF-8", patched(steady(), break_tags)),
    Odd("longer_sound.mp4", "audio longer than video", steady(sound=15)),
    Odd("one_frame.mp4", "one frame", lambda p: write(p, [0], FRAME)),
    Odd("matroska.mp4", "Matroska named .mp4", steady(format="matroska")),
    Odd("name.txt", "mp4 named .txt", steady(format="mp4")),
    Odd("pieces.mp4", "fragmented mp4", steady(container_options=PIECES)),
    Odd("edits.mp4", "edit list that hides the first 0.4 s", hidden_start),
    Odd("variable.mp4", "variable frame rate, gaps of 5 to 400 ms", stamped(irregular())),
    Odd("late.mkv", "first frame at 3.7 s", stamped([3713 + 40 * i for i in range(200)])),
    Odd("b_frames.avi", "B-frames in AVI, a format without time stamps", steady()),
    Odd("turned.mp4", "rotation by 180 degrees", patched(steady(), turn)),
    Odd("odd_size.mp4", "odd width and height (163 x 33)", steady(size=(163, 33), pix_fmt="yuv444p")),
    Odd("interlaced.mp4", "interlaced H.264", steady(options={"flags": "+ildct+ilme", "bf": "2", "threads": "1"})),
    Odd("ten_bit.mp4", "10-bit H.264", steady(pix_fmt="yuv420p10le")),
    Odd("hevc.mp4", "HEVC", steady(codec="libx265", options=HEVC)),
    Odd("hevc_10.mkv", "10-bit HEVC, open groups of pictures",
        steady(codec="libx265", options=OPEN_GOP, pix_fmt="yuv420p10le")),
    Odd("vp9.webm", "VP9", steady(codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"})),
    Odd("vp8.webm", "VP8", steady(codec="libvpx", options={"deadline": "realtime", "cpu-used": "8"})),
    Odd("av1.mp4", "AV1", steady(codec="libsvtav1", options={"preset": "12"}, size=(160, 64))),
    Odd("mpeg4.avi", "MPEG-4 part 2 with B-frames", steady(codec="mpeg4", options={"q": "2"})),
    Odd("mpeg2.mpg", "MPEG-2 program stream", steady(codec="mpeg2video", options={"b": "2000000"})),
    Odd("stream.ts", "H.264 in MPEG-TS", steady()),
    Odd("moving.gif", "animated GIF",
        lambda p: write(p, range(0, 200, 4), MS * 10, codec="gif", options={}, pix_fmt="rgb8")),
]  # fmt: skip


def upright(shown):
    """Return the number in a picture that is rotated by 180 degrees."""
    return number_in(shown[::-1, ::-1])


def right_numbers(times: list[Fraction], seconds: list[float]) -> list[int]:
    return expected(times, [Fraction(second) for second in seconds])


def table() -> str:
    """Return the table of docs/data.md."""
    head = "| file | `on_damage: reject` | `on_damage: keep` |\n|---|---|---|\n"
    return head + "\n".join(odd.rows() for odd in ODD) + "\n"
