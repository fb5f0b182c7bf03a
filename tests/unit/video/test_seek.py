"""A few frames of a long video are reached by seeking, and are the frames of decoding from the start."""

import random
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from ma2mba.video import probe as probing
from ma2mba.video import seek
from ma2mba.video.blocks import read_frames
from ma2mba.video.decode import decode_video
from ma2mba.video.entries import ENTRY, PARAMETERS, entry_check
from ma2mba.video.frames import FrameReader
from ma2mba.video.probe import probe
from ma2mba.video.stretches import Packets
from tests.unit.video.ffmpeg import SIDE, ffmpeg, picture
from tests.unit.video.random_files import Kind, encode

PLAIN = Kind("h264", "mp4", 3, False, 40, "25", False, 0.0, "whole", "", 2000)
LONG = [
    PLAIN,
    replace(PLAIN, container="mkv", b_frames=2),
    replace(PLAIN, container="ts", start=1000.0),
    replace(PLAIN, codec="hevc", open_gop=True, variable=True),
    replace(PLAIN, codec="mpeg2video", container="mkv", open_gop=True, b_frames=2),
    replace(PLAIN, codec="libvpx-vp9", container="webm", b_frames=0),
]


def write(folder: Path, kind: Kind) -> Path:
    path = folder / f"v.{kind.container}"
    encode(kind, path, random.Random(0))
    return path


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """Lists how many packets each stretch had."""
    lengths, real = [], seek.Seeker.frames
    monkeypatch.setattr(seek.Seeker, "frames", lambda self, s: lengths.append(len(s.pts_P)) or real(self, s))
    return lengths


def samples(path: Path, count: int, sought: bool):
    found = decode_video(path, np.copy, count=count, seek=sought).samples
    return [(sample.t, sample.index, sample.value.tobytes()) for sample in found]


@pytest.mark.parametrize("kind", LONG, ids=lambda kind: f"{kind.codec}-{kind.container}")
def test_frames_that_are_sought_are_the_frames_of_the_whole_file(kind, tmp_path, decoded):
    path = write(tmp_path, kind)
    expected = samples(path, 5, sought=False)
    assert not decoded
    assert samples(path, 5, sought=True) == expected
    assert len(decoded) == 6, "five stretches, and one for comparison"
    assert sum(decoded) < 400, "of 2,000 packets"


def test_a_reader_seeks(tmp_path, decoded):
    path = write(tmp_path, PLAIN)
    found = read_frames(path, SIDE, count=5)
    assert len(decoded) == 6
    with FrameReader() as reader:
        assert np.array_equal(reader.read(path, SIDE, count=5).pictures_MCHW, found.pictures_MCHW)


def test_dense_frames_and_short_videos_are_decoded_from_the_start(tmp_path, decoded):
    path = write(tmp_path, PLAIN)
    decode_video(path, np.copy, fps=5, seek=True)
    encode(replace(PLAIN, count=500), path, random.Random(0))
    decode_video(path, np.copy, count=5, seek=True)
    assert not decoded


@pytest.mark.parametrize(
    "options",
    [
        ("-x264-params", "intra-refresh=1:keyint=25:bframes=0"),
        ("-x264-params", "open-gop=1:keyint=25:b-adapt=0:scenecut=0"),
    ],
    ids=["refresh", "open"],
)
def test_only_idr_pictures_are_entries(options, tmp_path):
    """The TS demuxer calls the others key frames as well."""
    frames = b"".join(picture(number) for number in range(200))
    source = ["-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{SIDE}x{SIDE}", "-r", 25, "-i", "-"]
    ffmpeg(*source, "-c:v", "libx264", "-bf", 2, "-pix_fmt", "yuv420p", *options, tmp_path / "v.ts", data=frames)
    with av.open(str(tmp_path / "v.ts")) as container:
        stream = container.streams.video[0]
        check = entry_check(stream)
        flags = [check(packet) for packet in container.demux(stream) if packet.size and packet.is_keyframe]
    assert len(flags) > 1
    assert [bool(flag & ENTRY) for flag in flags] == [True] + [False] * (len(flags) - 1)


def test_a_key_frame_without_parameter_sets_is_no_entry_if_others_have_them():
    def entries(*flags: int) -> list[int]:
        packets = Packets(np.arange(len(flags)), np.ones(len(flags)), np.array(flags))
        return packets.entries().tolist()

    key = probing.KEY | ENTRY
    assert entries(key, 0, key, probing.KEY, key) == [0, 2, 4]
    assert entries(key | PARAMETERS, 0, key, key | PARAMETERS) == [0, 3]


def spoil_sizes(facts):
    facts.packets.sizes_P[900:] += 1


def spoil_order(facts):
    facts.packets.pts_P[[962, 963]] = facts.packets.pts_P[[963, 962]]


def call_all_entries(facts):
    facts.packets.flags_P[:] |= probing.KEY | ENTRY


@pytest.mark.parametrize(
    ("spoil", "b_frames"), [(spoil_sizes, 3), (spoil_order, 3), (call_all_entries, 0)], ids=lambda part: str(part)[:20]
)
def test_at_any_doubt_the_file_is_decoded_from_its_start(spoil, b_frames, tmp_path, monkeypatch):
    path = write(tmp_path, replace(PLAIN, b_frames=b_frames))
    expected, begun = samples(path, 5, sought=False), []

    def spoilt(path, beat):
        facts = probe(path, beat)
        spoil(facts)
        return facts

    monkeypatch.setattr("ma2mba.video.decode.probe", spoilt)
    found = decode_video(path, np.copy, count=5, seek=True, announce=begun.append).samples
    assert [(sample.t, sample.index, sample.value.tobytes()) for sample in found] == expected
    assert len(begun) == 2, "the pictures that were sought do not count"
