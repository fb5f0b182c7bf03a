"""Two hours of video: the frame of every second, with a worker and a reader whose memory does not grow with it."""

import json
import random
import statistics
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import av
import pytest
import simplejpeg
import yaml

from data_prep.spool import Spool, SpooledFrames
from data_prep.toy.words import save_tokenizer
from ma2mba.shards.reader import ShardReader
from ma2mba.shards.writer import PayloadWriter, payload_hash
from ma2mba.video.decode import decode_video
from tests.unit.video.long_video import SECONDS, number_in, write_long

ROOT = Path(__file__).parents[3]
BUILD = """
import json, resource, sys
from pathlib import Path
from data_prep.build import build

if __name__ == "__main__":
    report, rejects = build(Path(sys.argv[1]), Path(sys.argv[2]), workers=1)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(json.dumps([report["samples"], [reject.reason for reject in rejects], peak * 1024]))
"""
READ = """
import json, sys, time
from pathlib import Path
from ma2mba.shards.reader import ShardReader

reader = ShardReader(sys.argv[1])
(row,) = reader.rows
reader.frames(row, 0, 1)
seconds = []
for start in json.loads(sys.argv[2]):
    begun = time.perf_counter()
    assert len(reader.frames(row, start, start + 32)) == 32
    seconds.append(time.perf_counter() - begun)
(peak,) = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
print(json.dumps([seconds, int(peak) * 1024]))
"""
MB = 1 << 20


def run(code: str, *args: object) -> list:
    """Run code in a new process, and return the JSON that it prints."""
    command = [sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, timeout=500)
    return json.loads(done.stdout.splitlines()[-1])


def build_film(folder: Path, gap: int, size: int):
    """Return the shard folder, the times of the film's frames, and the worker's peak memory in bytes."""
    times = write_long(folder / "film.mp4", gap)
    talk = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "four"}]
    (folder / "film.json").write_text(json.dumps([{"id": "film", "video": "film.mp4", "conversations": talk}]))
    save_tokenizer(folder / "tokenizer.json")
    source = {"format": "llava", "annotations": "film.json", "media": "."}
    recipe = {"stage": "stage1", "tokenizer": "tokenizer.json", "image_size": size, "sources": [source]}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "build.py").write_text(BUILD)
    command = [sys.executable, str(folder / "build.py"), str(folder / "recipe.yaml"), str(folder / "shards")]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    samples, rejects, peak = json.loads(done.stdout.splitlines()[-1])
    assert (samples, rejects) == (1, [])
    return folder / "shards", times, peak


@pytest.mark.slow
def test_two_hours_are_7200_frames_each_the_one_on_screen(tmp_path):
    """A frame every 401 ms. The pictures are small, so that most of the time is decoding."""
    shards, times, peak = build_film(tmp_path, 401, 64)
    reader = ShardReader(shards)
    (row,) = reader.rows
    assert row.frames == SECONDS
    assert row.timestamps.tolist() == list(range(SECONDS))
    for start in range(0, SECONDS, 600):
        shown = [number_in(simplejpeg.decode_jpeg(data)) for data in reader.frames(row, start, start + 600)]
        assert shown == [int(second * 1000 // 401) for second in range(start, start + 600)]
    assert times[shown[-1]] <= SECONDS - 1
    assert peak < 500 * MB  # measured 153
    starts = random.Random(0).sample(range(SECONDS - 32), 5)
    _, memory = run(READ, shards, json.dumps(starts))
    assert memory < 200 * MB  # measured 122


@pytest.mark.scale
def test_two_hours_cost_less_than_decoding_every_frame(tmp_path):
    """Compare CPU seconds with a plain decode of the same file, and read 32 frames of real size at once."""
    shards, times, peak = build_film(tmp_path, 127, 336)
    film = tmp_path / "film.mp4"

    def plain():
        with av.open(str(film)) as container:
            assert sum(1 for _ in container.decode(video=0)) == len(times)

    def ours():
        assert len(decode_video(film, lambda picture: None).samples) == SECONDS

    ratios = [cpu_seconds(ours) / cpu_seconds(plain) for _ in range(3)]
    starts = random.Random(0).sample(range(SECONDS - 32), 50)
    seconds, memory = run(READ, shards, json.dumps(starts))
    print(f"CPU ratios {ratios}, worker {peak / MB:.0f} MB, read {statistics.median(seconds) * 1000:.1f} ms")
    assert statistics.median(ratios) <= 0.75  # measured 0.54 (0.40 to 0.58)
    assert peak < 500 * MB
    assert statistics.median(seconds) < 0.05  # measured 0.0009
    assert memory < 200 * MB


def cpu_seconds(work) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def test_a_spool_gives_back_what_was_put_and_leaves_no_file(tmp_path):
    with Spool(tmp_path / "work") as spool:
        spool.put(b"of the sample before")
        spool.clear()
        slots = [spool.put(bytes([i]) * i) for i in range(5)]
        frames = SpooledFrames(spool, [(float(i), i - 0.5, slot) for i, slot in enumerate(slots)])
        assert spool.put(b"later").offset == 10
        assert [frame.data for frame in frames[1:3]] == [b"\1", b"\2\2"]
        assert [(f.t, f.pts, len(f.data)) for f in frames] == [(float(i), i - 0.5, i) for i in range(5)]
        assert (len(frames), frames.times, frames[4].data) == (5, [0, 1, 2, 3, 4], b"\4" * 4)
        assert list((tmp_path / "work").iterdir()) == []


def test_memory_does_not_grow_with_the_video(tmp_path):
    """Hash and write a spooled sample of 100 MB while only row groups of the sample are in memory."""
    tracemalloc.start()
    with Spool(tmp_path) as spool, PayloadWriter(tmp_path, 0) as writer:
        data = [(float(i), float(i), spool.put(bytes(100_000))) for i in range(1000)]
        frames = SpooledFrames(spool, data)
        payload_hash(frame.data for frame in frames)
        writer.add("film", frames)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / writer.name).stat().st_size > 100_000_000
    assert peak < 20 * MB  # measured 13: two row groups of 64 frames
