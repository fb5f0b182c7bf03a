"""Several processes decode pieces of a long video, and give the frames of one process."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ma2mba.video import frames
from ma2mba.video.blocks import read_frames
from ma2mba.video.errors import MediaError
from ma2mba.video.frames import FrameReader, read_item
from ma2mba.video.messages import Block, Joint, Piece, Request
from ma2mba.video.pieces import Pieces, digest_of
from ma2mba.video.pool import Pool
from ma2mba.video.seek import Doubt
from ma2mba.video.stream import StartAgain, VideoStream
from ma2mba.video.stretches import Packets, Stretches
from tests.unit.video import spoilt_pieces
from tests.unit.video.ffmpeg import SIDE
from tests.unit.video.random_files import Kind, encode

PLAIN = Kind("h264", "mp4", 3, False, 25, "25", False, 0.0, "whole", "", 2500)
KINDS = [
    PLAIN,
    replace(PLAIN, container="ts", key_every=10, start=1000.0),
    replace(PLAIN, codec="hevc", container="mkv", open_gop=True),
    replace(PLAIN, codec="mpeg2video", container="mkv", open_gop=True, b_frames=2),
    replace(PLAIN, codec="libsvtav1", container="webm", b_frames=0),
    replace(PLAIN, codec="mjpeg", container="avi", b_frames=0),
]


def write(folder: Path, kind: Kind) -> Path:
    path = folder / f"v.{kind.container}"
    encode(kind, path, random.Random(0))
    return path


def read(path: Path, workers: int, work=read_item) -> tuple[np.ndarray, list[str]]:
    """Return all pictures, and what happened: "divided", "again"."""
    request = Request(path, SIDE, fps=5, held=False, workers=workers)
    with Pool(work, 1, 1 << 31) as pool, VideoStream(request, pool, 30.0) as stream:
        said, blocks = [], []
        while True:
            try:
                blocks += [block.pictures_MCHW for block in stream]
                break
            except StartAgain:
                said.append("again")
                blocks.clear()
            finally:
                said += ["divided"] if stream._pieces else []
        return np.concatenate(blocks), said


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.codec}-{kind.container}")
def test_several_processes_give_the_frames_of_one(kind, workers, tmp_path, monkeypatch):
    path = write(tmp_path, kind)
    expected = read_frames(path, SIDE, fps=5).pictures_MCHW
    found, said = read(path, workers)
    assert said == ["divided"]
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("work", [spoilt_pieces.other_pixels, spoilt_pieces.turned, spoilt_pieces.doubtful])
def test_pieces_that_do_not_fit_are_decoded_again_by_one_process(work, tmp_path):
    path = write(tmp_path, PLAIN)
    found, said = read(path, 2, work)
    assert said == ["again"]
    assert np.array_equal(found, read_frames(path, SIDE, fps=5).pictures_MCHW)


def test_a_crash_in_a_piece_is_named_with_the_seconds_before_it(tmp_path):
    path = write(tmp_path, PLAIN)
    with pytest.raises(MediaError, match=r"v\.mp4: the decoder crashed") as caught:
        read(path, 2, spoilt_pieces.crash)
    assert 0 < caught.value.partial < 100


def test_damage_in_a_piece_is_found_by_one_process(tmp_path):
    path = write(tmp_path, PLAIN)
    data = bytearray(path.read_bytes())
    at = len(data) // 4
    data[at : at + 3000] = random.Random(1).randbytes(3000)
    path.write_bytes(data)
    with pytest.raises(MediaError) as alone:
        read(path, 1)
    with pytest.raises(MediaError) as together:
        read(path, 2)
    assert together.value.reason == alone.value.reason
    assert together.value.partial == alone.value.partial


def test_short_videos_and_long_groups_are_decoded_by_one_process():
    def pieces(packets: int, key_every: int, wanted_every: int):
        flags = [7 if number % key_every == 0 else 2 for number in range(packets)]
        all_packets = Packets(np.arange(packets), np.ones(packets, np.int32), np.array(flags))
        return Stretches(all_packets, list(range(0, packets, wanted_every))).pieces()

    assert not pieces(1900, 25, 5)
    assert not pieces(9000, 1000, 5), "200 pictures of a piece would be held"
    found = pieces(9000, 250, 10)
    assert [(first, stop) for first, stop, _ in found] == [(n, min(n + 25, 900)) for n in range(0, 900, 25)]
    assert [len(stretch.wanted_W) for _, _, stretch in found] == [26] * 35 + [25]


def test_only_a_window_of_pieces_is_held():
    parts = [Piece(Request(Path("a"), SIDE), None, first, first + 2) for first in range(0, 10, 2)]
    pieces = Pieces(parts, window=2)
    blocks = [Block(number, np.full((1, 3, 2, 2), number, np.uint8)) for number in range(10)]
    digests = [digest_of(blocks[part.stop].pictures_MCHW[0]) for part in parts[:-1]]
    assert [pieces.allowed(number) for number in range(5)] == [True, True, False, False, False]
    for _ in range(2):  # a worker that replaces another sends its blocks again
        pieces.add(1, blocks[2])
        pieces.add(1, blocks[3])
    assert pieces.take() is None
    pieces.add(0, blocks[0])
    assert pieces.take() is blocks[0]
    pieces.add(0, blocks[1])
    pieces.end(0, Joint(digests[0], frozenset([b""])))
    assert [pieces.take(), pieces.take(), pieces.take(), pieces.take()] == [*blocks[1:4], None]
    assert pieces.allowed(2)
    pieces.end(1, Joint(digests[2], frozenset([b""])))
    pieces.add(2, blocks[4])
    with pytest.raises(Doubt):
        pieces.take()


def test_a_reader_divides_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(frames.os, "sched_getaffinity", lambda _: {0, 1})
    path = write(tmp_path, replace(PLAIN, rate="8"))
    with FrameReader() as reader:
        for _ in range(2):
            assert np.array_equal(reader.read(path, SIDE).pictures_MCHW, read_frames(path, SIDE).pictures_MCHW)
