"""The frames that a viewer sees, in files whose packets state wrong times, none, or pictures that cannot be decoded.

Every file is made here. What is right stands beside it, and ffmpeg must agree.
"""

import itertools
import random
import struct
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from ma2mba.video.blocks import read_frames
from ma2mba.video.decode import decode_video, read_times
from ma2mba.video.errors import MediaError
from tests.unit.video import ffmpeg as ff
from tests.unit.video.ffmpeg import SIDE, ffmpeg, number_in, numbers_shown
from tests.unit.video.numbered_video import picture_types
from tests.unit.video.random_files import crop

TEN = Fraction(1, 10)


def encode(path: Path, *coding: object, count: int = 60, first: int = 0, rate: object = 10) -> Path:
    """Write the frames first, first + 1, ... with ffmpeg."""
    frames = b"".join(ff.picture(number) for number in range(first, first + count))
    source = [
        "-f",
        "rawvideo",
        "-pix_fmt",
        "gray",
        "-s",
        f"{SIDE}x{SIDE}",
        "-r",
        rate,
        "-i",
        "-",
        "-pix_fmt",
        "yuv420p",
    ]
    ffmpeg(*source, *coding, path, data=frames)
    return path


def x264(b_frames: int = 2, group: int = 30, open_gop: int = 0) -> list[object]:
    more = f"b-adapt=0:scenecut=0:open-gop={open_gop}"
    return ["-c:v", "libx264", "-threads", 1, "-bf", b_frames, "-g", group, "-x264-params", more]


def copy(source: Path, target: Path, *before: object, after: tuple[object, ...] = ()) -> Path:
    ffmpeg(*before, "-i", source, "-c", "copy", *after, target)
    return target


def shown(path: Path, fps: int = 1, **options) -> list[int]:
    return [sample.value for sample in decode_video(path, number_in, fps=fps, **options).samples]


def reason(path: Path, **options) -> str:
    with pytest.raises(MediaError) as caught:
        shown(path, **options)
    return caught.value.reason


@pytest.mark.parametrize("suffix", ["ts", "mpg"])
@pytest.mark.parametrize("later", [0, 2, 600])
def test_clocks_that_restart_are_joined(suffix, later, tmp_path):
    coding = [*x264(), "-output_ts_offset"]
    first = encode(tmp_path / f"a.{suffix}", *coding, 1.4, count=50)
    second = encode(tmp_path / f"b.{suffix}", *coding, 1.4 + later, count=50, first=1000)
    joined = tmp_path / f"c.{suffix}"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    assert shown(joined) == numbers_shown(joined)
    assert shown(joined) == [*range(0, 50, 10), *range(1000, 1050, 10)] or later == 2  # 2 s: the clocks overlap
    assert read_times(joined).duration == pytest.approx(10, abs=0.3)


def test_a_clock_that_goes_back_without_a_word_is_named(tmp_path):
    """Matroska does not allow a clock to restart."""
    path = tmp_path / "v.mkv"
    mux(path, list(range(0, 10000, 100)))
    data = bytearray(path.read_bytes())
    at = data.index(b"\xe7\x82", data.index(b"\x1f\x43\xb6\x75", data.index(b"\x1f\x43\xb6\x75") + 4))
    data[at + 2 : at + 4] = bytes(2)  # the time of the second cluster
    path.write_bytes(data)
    assert "its clock goes back by" in reason(path)


def mux(path: Path, stamps: list[int]) -> None:
    """Write frames of MJPEG at these times in ms."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuvj420p"
        for number, stamp in enumerate(stamps):
            grey = np.frombuffer(ff.picture(number), np.uint8).reshape(SIDE, SIDE)
            frame = av.VideoFrame.from_ndarray(np.stack([grey] * 3, -1), format="rgb24").reformat(format="yuvj420p")
            frame.pts, frame.time_base = number, TEN
            for packet in stream.encode(frame):
                packet.pts = packet.dts = stamp
                packet.time_base = Fraction(1, 1000)
                container.mux(packet)


@pytest.mark.parametrize("codec", ["h264", "mpeg4"])
@pytest.mark.parametrize("suffix", ["avi", "asf"])
def test_b_frames_in_containers_that_do_not_state_when_they_are_shown(codec, suffix, tmp_path):
    coding = x264(group=20) if codec == "h264" else ["-c:v", "mpeg4", "-bf", 2, "-g", 20, "-q:v", 3]
    path = encode(tmp_path / f"v.{suffix}", *coding, count=60)
    assert "BB" in picture_types(path)
    assert shown(path, 10) == numbers_shown(path, 10) == list(range(60))
    assert shown(path) == list(range(0, 60, 10))


def test_a_copy_that_states_when_frames_are_decoded_is_named(tmp_path):
    """A viewer sees every frame of the copy at a wrong time."""
    path = copy(encode(tmp_path / "v.avi", *x264()), tmp_path / "v.mov")
    assert "it states when frames are decoded, not when they are shown" in reason(path)


def test_packed_b_frames_of_divx(tmp_path):
    """A packet holds a P-frame and the B-frame before it; the next packet is empty."""
    plain = encode(tmp_path / "plain.avi", "-c:v", "mpeg4", "-bf", 1, "-g", 25, "-q:v", 3, count=75, rate=25)
    packed = tmp_path / "packed.avi"
    with av.open(str(plain)) as source, av.open(str(packed), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in pack(source):
            packet.stream = stream
            target.mux(packet)
    assert picture_types(packed) == picture_types(plain)
    for path in (plain, packed):
        assert shown(path, 25) == numbers_shown(path, 25) == list(range(75))


def pack(source) -> Iterator[av.Packet]:
    """Yield the packets of an MPEG-4 stream as DivX packs them."""
    packets = [packet for packet in source.demux(video=0) if packet.size]
    data = [bytes(packet) for packet in packets]
    at = data[0].index(b"\0\0\1\xb2")
    data[0] = data[0][:at] + b"\0\0\1\xb2DivX503b1393p" + data[0][data[0].index(b"\0\0\1\xb6") :]
    kinds = [vop[vop.index(b"\0\0\1\xb6") + 4] >> 6 for vop in data]
    number = 0
    while number < len(data):
        follows = number + 1 < len(data) and kinds[number + 1] == 2
        chunks = [data[number] + data[number + 1], b"\0\0\1\xb6\x51\x50\x7f"] if follows else [data[number]]
        for chunk in chunks:
            packet = av.Packet(chunk)
            packet.pts, packet.dts, packet.time_base = None, packets[number].dts, packets[number].time_base
            packet.is_keyframe = packets[number].is_keyframe and chunk is chunks[0]
            yield packet
            number += 1


def test_the_last_of_two_frames_with_one_time_is_shown(tmp_path):
    path = tmp_path / "v.mkv"
    mux(path, [number // 2 * 200 for number in range(40)])
    assert shown(path) == numbers_shown(path) == [1, 11, 21, 31]


@pytest.mark.parametrize("codec", ["h264", "hevc", "mpeg2video"])
@pytest.mark.parametrize("suffix", ["ts", "mkv"])
@pytest.mark.parametrize("start", [2.1, 3.3])
def test_a_copy_from_an_open_group_begins_with_its_key_frame(codec, suffix, start, tmp_path):
    """The leading pictures refer to frames that were cut away. A TS is cut at its packets, as a recording is."""
    whole = encode(tmp_path / f"whole.{suffix}", *open_group(codec), count=120)
    assert "B" in picture_types(whole)
    cut = copy(whole, tmp_path / f"cut.{suffix}", "-ss", start)
    right = numbers_shown(cut)
    assert len(right) >= 6
    assert right[0] % 30 in (0, 1)  # a key frame
    assert shown(cut) == shown(cut, keep_damaged=True) == right


def open_group(codec: str) -> list[object]:
    if codec == "h264":
        return x264(b_frames=3, open_gop=1)
    if codec == "hevc":
        more = "log-level=none:pools=none:frame-threads=1:b-adapt=0:scenecut=0:open-gop=1"
        return ["-c:v", "libx265", "-preset", "ultrafast", "-bf", 3, "-g", 30, "-x265-params", more]
    return ["-c:v", codec, "-bf", 2, "-g", 30, "-q:v", 3, "-sc_threshold", 1000000000]


@pytest.mark.parametrize("codec", ["h264", "mpeg2video"])
@pytest.mark.parametrize("share", [0.1, 0.2, 0.4])
def test_a_recording_begins_anywhere(codec, share, tmp_path):
    path = encode(tmp_path / "v.ts", *open_group(codec), count=120)
    data = path.read_bytes()
    at = int(len(data) * share)
    path.write_bytes(data[at - at % 188 :])
    right = numbers_shown(path)
    assert len(right) >= 6
    assert shown(path) == shown(path, keep_damaged=True) == right


@pytest.mark.parametrize("at", [30, 50, 70])
def test_a_packet_without_a_time_hides_no_damage(at, tmp_path):
    whole, path = encode(tmp_path / "whole.mkv", *open_group("hevc"), count=120), tmp_path / "v.mkv"
    with av.open(str(whole)) as source, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        start = next(i for i, packet in enumerate(packets) if packet.is_keyframe and packet.pts > 2000)
        zero = packets[start].pts
        for packet in packets[start:]:
            packet.pts, packet.dts = packet.pts - zero, (packet.dts or 0) - zero  # leading pictures are before 0
            packet.stream = stream
            target.mux(packet)
    with av.open(str(path)) as container:
        container.flags = 0
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert any(packet.pts is None for packet in packets)
    assert shown(path) == numbers_shown(path)
    data, reference = path.read_bytes(), max(packets[at : at + 5], key=lambda packet: packet.pts)
    assert data.count(bytes(reference)) == 1
    path.write_bytes(data.replace(bytes(reference), b"\x7f" * 4 + bytes(reference)[4:]))
    assert "damaged" in reason(path)
    kept = shown(path, keep_damaged=True)
    assert kept == numbers_shown(path)[: len(kept)]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("turn", [0, 90, 180, 270])
@pytest.mark.parametrize("mirror", [(), ("-display_hflip",), ("-display_vflip",)])
def test_pictures_are_turned_and_mirrored(turn, mirror, suffix, tmp_path):
    plain = encode(tmp_path / "plain.mp4", *x264(), count=30)
    path = copy(plain, tmp_path / f"v.{suffix}", "-display_rotation", turn, *mirror)
    assert shown(path, 5) == numbers_shown(path, 5)
    assert (shown(path, 5) == shown(plain, 5)) == (turn == 0 and not mirror)


@pytest.mark.parametrize("matrix", itertools.product([1, -1], [1, -1], [False, True]))
def test_all_eight_display_matrices(matrix, tmp_path):
    across, down, swapped = matrix
    path = encode(tmp_path / "v.mp4", *x264(), count=30)
    data = bytearray(path.read_bytes())
    at, one = data.index(b"tkhd") + 44, 0x10000
    rows = [0, across * one, 0, down * one, 0, 0] if swapped else [across * one, 0, 0, 0, down * one, 0]
    data[at : at + 36] = struct.pack(">9i", *rows, 0, 0, 0x40000000)
    path.write_bytes(data)
    assert shown(path, 5) == numbers_shown(path, 5)


def test_a_turn_by_ten_degrees_is_named(tmp_path):
    path = copy(encode(tmp_path / "plain.mp4", *x264(), count=30), tmp_path / "v.mp4", "-display_rotation", 10)
    assert "display matrix" in decode_video(path, number_in).ignored


@pytest.mark.parametrize("sides", [(8, 8, 16, 16), (16, 0, 0, 0), (0, 2, 4, 6)])
def test_matroska_crops(sides, tmp_path):
    bottom, top, left, right = sides
    plain = encode(
        tmp_path / "plain.mp4", *x264(), "-vf", f"pad=iw+{left + right}:ih+{top + bottom}:{left}:{top}:white"
    )
    colours = ["-color_primaries", "bt709", "-color_trc", "bt709", "-colorspace", "bt709", "-color_range", "tv"]
    path = copy(plain, tmp_path / "v.mkv", after=(*colours,))
    crop(path, sides)
    sizes = decode_video(path, lambda picture: picture.shape).samples
    assert {sample.value for sample in sizes} == {(SIDE, SIDE, 3)}
    assert shown(path) == numbers_shown(path) == list(range(0, 60, 10))


def test_the_clean_aperture_of_mp4_crops(tmp_path):
    """ffmpeg writes the crop of Matroska as a clean aperture."""
    plain = encode(tmp_path / "plain.mp4", *x264(), "-vf", "pad=iw+32:ih+16:16:8:white")
    colours = ["-color_primaries", "bt709", "-color_trc", "bt709", "-colorspace", "bt709", "-color_range", "tv"]
    path = copy(plain, tmp_path / "v.mkv", after=(*colours,))
    crop(path, (8, 8, 16, 16))
    path = copy(path, tmp_path / "v.mov")
    assert b"clap" in path.read_bytes()
    assert decode_video(path, lambda picture: picture.shape).samples[0].value == (SIDE, SIDE, 3)
    assert shown(path) == numbers_shown(path) == list(range(0, 60, 10))


def test_pixels_that_are_not_square_are_named(tmp_path):
    path = encode(tmp_path / "v.mp4", *x264(), "-aspect", "16:9")
    decoded = decode_video(path, number_in)
    assert decoded.ignored == "pixels of 16:9 are taken as square"
    assert [sample.value for sample in decoded.samples] == numbers_shown(path)


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "avi"])
def test_a_damaged_first_frame_is_damage(suffix, tmp_path):
    """The video would begin at its second key frame, at wrong times. In MPEG-TS this is undetectable."""
    path = encode(tmp_path / f"v.{suffix}", *x264(group=20), count=80)
    with av.open(str(path)) as container:
        first = bytes(next(container.demux(video=0)))
    data = bytearray(path.read_bytes())
    at = data.index(first[-40:])
    data[at : at + 40] = random.Random(2).randbytes(40)
    path.write_bytes(data)
    assert reason(path).startswith("damaged after its start")


@pytest.mark.parametrize("blocks", [1, 3 * SIDE * SIDE])
def test_frames_that_contradict_their_packets_are_decoded_again(blocks, monkeypatch, tmp_path):
    """The frames that were used before the contradiction do not count."""
    path = encode(tmp_path / "v.mp4", *x264(0), count=60)
    facts = read_times(path)
    assert facts.by_packet
    wrong = replace(facts, pts=[time for number, time in enumerate(facts.pts) if number != 35])
    monkeypatch.setattr("ma2mba.video.decode.read_times", lambda path, beat: wrong)
    monkeypatch.setattr("ma2mba.video.blocks.BLOCK_BYTES", blocks)
    frames = read_frames(path, SIDE).frames_NHWC
    assert [number_in(frame) for frame in frames] == list(range(0, 60, 10))


TABLE = [
    ("H.264 or MPEG-4 with B-frames in AVI or ASF", "decoded exactly"),
    ("MPEG-4 with packed B-frames (DivX)", "decoded exactly"),
    ("MPEG-TS or MPEG-PS files joined by `cat`, whose clocks restart or jump", "joined as ffmpeg joins them"),
    ("a clock that goes back in another container", "rejected: its clock goes back by N s after frame M"),
    (
        "a copy that states when frames are decoded (H.264 from AVI, by `-c copy`)",
        "rejected: N of its M frames have times before the frame ahead of them",
    ),
    ("two frames with one time", "the last of them is shown"),
    ("a copy from the middle of an open group of pictures; an HLS segment", "begins with its first key frame"),
    ("a recording (MPEG-TS) that begins anywhere", "begins with the first frame that can be shown"),
    ("a packet without a time", "the frame's own time; damage after it is found"),
    ("a first frame that is damaged (not in MPEG-TS, where it is undetectable)", "rejected: damaged after its start"),
    ("a display matrix of quarter turns and mirrors", "applied"),
    ("a display matrix of another angle", "not applied; `reason` in the index says so"),
    ("a crop: PixelCrop of Matroska, clean aperture of mp4", "applied"),
    ("pixels that are not square", "taken as square; `reason` in the index says so"),
]
"""What happens to each kind of file in this module, as docs/data.md says."""


def test_the_document_says_what_happens():
    """After a change, paste the printed table."""
    rows = "| file | what happens |\n|---|---|\n" + "".join(f"| {file} | {happens} |\n" for file, happens in TABLE)
    print(rows)
    assert rows in (Path(__file__).parents[3] / "docs/data.md").read_text()
