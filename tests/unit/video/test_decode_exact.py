"""At every second, the decoder returns the frame that a viewer sees. Each frame of the test files shows its number."""

import random
import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from ma2mba.video import decode
from ma2mba.video.blocks import read_frames
from ma2mba.video.decode import decode_video, decoded_times, read_times, sample_times
from ma2mba.video.errors import MediaError
from ma2mba.video.probe import probe
from tests.unit.video.numbered_video import expected, number_in, picture, picture_types, write

MS = Fraction(1, 1000)


def irregular(count: int, low: int, high: int, start: int = 0) -> list[int]:
    """Return presentation times in ms with gaps of low..high."""
    rng = random.Random(count)
    stamps = [start]
    while len(stamps) < count:
        stamps.append(stamps[-1] + rng.randint(low, high))
    return stamps


CASES = {
    "ntsc.mp4": ([i * 1001 for i in range(300)], Fraction(1, 30000)),
    "ntsc.mkv": (range(300), Fraction(1001, 30000)),
    "vfr.mp4": (irregular(200, 5, 110), MS),
    "slow_vfr.mkv": (irregular(30, 200, 2500), MS),
    "late_start.mkv": (irregular(150, 20, 60, start=3713), MS),
    "late_start.mp4": (irregular(150, 20, 60, start=3713), MS),
    "b_frames.avi": (range(200), Fraction(1, 25)),
    "odd_start.ts": ([90 * 1234 + i * 3003 for i in range(250)], Fraction(1, 90000)),
}


@pytest.fixture(params=CASES)
def video(request, tmp_path):
    path = tmp_path / request.param
    return path, write(path, *CASES[request.param])


def numbers(path, **options):
    decoded = decode_video(path, number_in, **options)
    return [s.value for s in decoded.samples], [s.t for s in decoded.samples], decoded


def test_every_second_shows_the_frame_on_screen(video):
    path, times = video
    shown, seconds, decoded = numbers(path)
    assert seconds == list(range(len(seconds)))
    assert len(seconds) in (int(times[-1]) + 1, int(times[-1]) + 2, int(times[-1]) + 3)
    assert seconds[-1] < decoded.duration <= seconds[-1] + 1
    assert shown == expected(times, seconds)
    # 0.0011 s: matroska and TS round times to their own tick
    assert [s.pts for s in decoded.samples] == pytest.approx([float(times[i]) for i in shown], abs=0.0011)
    assert [s.index for s in decoded.samples] == shown


def test_the_files_hold_b_frames(video):
    assert "BBB" in picture_types(video[0])


def test_the_first_pass_alone_suffices_while_skipping(video):
    """AVI does not state when a frame is shown: its times cannot be trusted."""
    path, times = video
    facts = probe(path)
    assert facts.by_packet == (path.suffix != ".avi")
    if facts.by_packet:
        used, right = {}, set(expected(times, range(int(times[-1]))))
        assert decode._decode_once(path, facts, right, used, number_in, lambda: None, skipping=True) == ("", "")
        assert {number: used[number] for number in right} == {number: number for number in right} == used


def test_decoding_all_times_gives_the_same(video, monkeypatch):
    path, _ = video
    two_pass = numbers(path)[0]
    monkeypatch.setattr(decode, "read_times", lambda path, beat: decoded_times(path, probe(path), beat))
    assert numbers(path)[0] == two_pass


def test_times_from_the_decoder_equal_those_of_packets(video):
    path, _ = video
    facts = read_times(path)
    decoded = decoded_times(path, facts)
    assert (decoded.pts, decoded.duration) == (facts.pts, facts.duration)


def test_frames_hidden_by_an_edit_list_are_not_counted(tmp_path):
    """An mp4 hides frames before time 0: the video starts with the first frame that is shown."""
    path = tmp_path / "v.mp4"
    stamps = irregular(150, 20, 60, start=-433)
    times = write(path, stamps, MS)
    hidden = sum(stamp < 0 for stamp in stamps)
    shown, seconds, decoded = numbers(path)
    assert shown == [hidden + i for i in expected([t - times[hidden] for t in times[hidden:]], seconds)]
    assert decoded.total == 150 - hidden


def test_ranges_rates_and_counts(tmp_path):
    path = tmp_path / "v.mp4"
    times = write(path, [i * 1001 for i in range(300)], Fraction(1, 30000))
    shown, seconds, _ = numbers(path, fps=2.0, start=1.25, stop=4.0)
    assert seconds == [1.25, 1.75, 2.25, 2.75, 3.25, 3.75]
    assert shown == expected(times, [Fraction(s) for s in seconds])
    _, seconds, _ = numbers(path, count=4)
    assert seconds == [0, 3, 6, 10]
    assert numbers(path, count=99)[1] == list(range(11))
    with pytest.raises(MediaError, match="no frame in the requested range"):
        numbers(path, start=50.0)


def test_sample_times_are_exact():
    assert sample_times(2.0, 1.0, None, None) == [0, 1]
    assert sample_times(2.001, 1.0, None, None) == [0, 1, 2]
    thirds = sample_times(1.0, 3.0, None, None)
    assert thirds == [0, Fraction(1, 3), Fraction(2, 3)]


def test_rotation_is_applied(tmp_path):
    """The file of a phone asks for a rotation by 90 degrees clockwise."""
    path = tmp_path / "phone.mp4"
    write(path, range(16), Fraction(1, 8))
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    data[at : at + 36] = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 32 << 16, 0, 0x40000000)
    path.write_bytes(data)
    shown = decode_video(path, lambda p: p).samples[1].value
    assert shown.shape == (160, 32, 3)
    assert np.abs(shown.astype(int) - np.rot90(picture(8), -1)).mean() < 8  # measured 0.9: compression at block edges


def make_file(kind, folder):
    path = folder / f"{kind}.mp4"
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("this is no video\n" * 200)
    elif kind == "cut_mp4":
        write(path, range(200), Fraction(1, 25))
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    elif kind == "audio":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=16000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
            frame.rate = 16000
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
    elif kind == "cover":
        path = folder / "cover.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mjpeg", rate=1)
            stream.width, stream.height, stream.pix_fmt = 160, 32, "yuvj420p"
            stream.disposition = av.stream.Disposition.attached_pic.value
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(5), format="rgb24")))
            container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "no such file"),
        ("empty", "the file is empty"),
        ("text", "not a readable video"),
        ("cut_mp4", "not a readable video"),
        ("audio", "no video stream"),
        ("cover", "only picture is a cover"),
    ],
)
def test_unusable_files_are_named_with_the_reason(kind, reason, tmp_path):
    path = make_file(kind, tmp_path)
    with pytest.raises(MediaError, match=reason) as caught:
        read_frames(path, 56)
    assert str(path) in str(caught.value)


def test_a_cut_matroska_is_rejected_or_kept_as_far_as_it_is_right(tmp_path):
    path = tmp_path / "v.mkv"
    times = write(path, range(500), Fraction(1, 25))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(MediaError, match="truncated or damaged: it ends at"):
        numbers(path)
    shown, seconds, decoded = numbers(path, keep_damaged=True)
    assert "truncated" in decoded.damage
    assert 5 <= len(shown) < 20
    assert shown == expected(times, seconds)


@pytest.mark.parametrize("spot", [0.3, 0.5, 0.8])
def test_damaged_pictures_are_seen(spot, tmp_path):
    path = tmp_path / "v.mkv"
    times = write(path, range(500), Fraction(1, 25))
    data = bytearray(path.read_bytes())
    at = int(len(data) * spot)
    data[at : at + 40] = random.Random(1).randbytes(40)
    path.write_bytes(data)
    with pytest.raises(MediaError):
        numbers(path)
    shown, seconds, decoded = numbers(path, keep_damaged=True)
    assert decoded.damage
    assert shown == expected(times, seconds)
