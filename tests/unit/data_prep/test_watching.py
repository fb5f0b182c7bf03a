"""Watched workers: a stall or crash that no clip can cause costs no clip, and progress counts each clip once."""

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from data_prep import sample, shard
from data_prep.clips import Clip
from data_prep.recipe import Recipe
from data_prep.shard import Job, load_finished
from data_prep.toy.words import save_tokenizer
from ma2mba.errors import UserError
from ma2mba.model.conversation import Turn
from ma2mba.shards.writer import PayloadFrame, PayloadWriter
from ma2mba.video import pool


@pytest.fixture
def job(tmp_path) -> Job:
    save_tokenizer(tmp_path / "tokenizer.json")
    Image.fromarray(np.full((40, 40, 3), 77, np.uint8)).save(tmp_path / "a.png")
    source = {"format": "llava", "annotations": "a.json", "media": "."}
    recipe = Recipe.model_validate({"stage": "stage1", "tokenizer": "t", "image_size": 32, "sources": [source]})
    return Job(tmp_path / "out", recipe, "hash", tmp_path / "tokenizer.json")


def tasks(job: Job, *sizes: int) -> list[pool.Task]:
    """One shard per size, of that many pictures, named 0-0, 0-1, ..."""
    talk = (Turn("user", "q"), Turn("assistant", "four"))
    media = job.tokenizer.parent / "a.png"
    return [
        pool.Task(number, [Clip(f"{number}-{i}", media, "a.png", "r", talk, is_image=True) for i in range(size)])
        for number, size in enumerate(sizes)
    ]


def strikes(job: Job) -> int:
    """Count the calls of all workers."""
    file = job.out.parent / "strikes"
    file.write_bytes((file.read_bytes() if file.exists() else b"") + b"x")
    return file.stat().st_size


def before_the_notes(job: Job, do: Callable[[int], None]) -> None:
    """In a worker: call `do(number)` after the last clip of each shard."""
    save = shard.save_finished

    def saved(out, number, *rest):
        do(number)
        save(out, number, *rest)

    shard.save_finished = saved


def work_and_end_late(pipe, work, memory):
    job = work.args[0]

    def wait(_):
        (job.out.parent / "ending").touch()
        while not (job.out.parent / "go").exists():
            time.sleep(0.001)

    before_the_notes(job, wait)
    pool._work(pipe, work, memory)


def work_and_crash_at_each_end(pipe, work, memory):
    job = work.args[0]
    before_the_notes(job, lambda _: strikes(job) < 5 and os.kill(os.getpid(), signal.SIGSEGV))
    pool._work(pipe, work, memory)


def work_and_crash_at_the_end_of_shard_1(pipe, work, memory):
    job = work.args[0]
    before_the_notes(job, lambda number: number == 1 and strikes(job) == 1 and os.kill(os.getpid(), signal.SIGSEGV))
    pool._work(pipe, work, memory)


def work_and_crash_at_a_clip(pipe, work, memory):
    make = shard.build_sample

    def made(clip, *rest):
        if clip.sample_id == "0-2":
            os.kill(os.getpid(), signal.SIGSEGV)
        return make(clip, *rest)

    shard.build_sample = made
    pool._work(pipe, work, memory)


def work_and_fail(pipe, work, memory):
    def fail(*_):
        raise OSError(28, "No space left on device")

    shard.save_finished = fail
    pool._work(pipe, work, memory)


def run(job, work, sizes, monkeypatch, stall=300.0) -> tuple[int, int]:
    """Build with workers that run `work`; return the sums of the reported clips and rejects."""
    monkeypatch.setattr(pool, "_work", work)
    clips, rejects = [], []
    pool.run_tasks(
        partial(shard.build_shard, job),
        tasks(job, *sizes),
        workers=1,
        memory=job.memory,
        progress=clips.append,
        on_result=lambda _, rejected: rejects.append(rejected),
        stall=stall,
    )
    assert len(rejects) == len(sizes)
    return sum(clips), sum(rejects)


class Clock:
    """A clock that stands still until a worker is at its end, and then jumps once by `jump` seconds."""

    def __init__(self, folder: Path, jump: float):
        self.folder, self.jump, self.looks = folder, jump, 0

    def monotonic(self) -> float:
        self.looks += (self.folder / "ending").exists()
        if self.looks > 5:  # the first looks may come before the worker's last message
            (self.folder / "go").touch()
        return self.jump if self.looks > 3 else 0.0


def test_a_slow_end_of_a_shard_costs_no_clip(job, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "time", Clock(tmp_path, 1000.0))
    assert run(job, work_and_end_late, [2], monkeypatch, stall=0.01) == (2, 0)


def test_an_end_that_never_comes_is_an_error(job, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "time", Clock(tmp_path, 2000.0))
    with pytest.raises(UserError, match="did not finish its task within 1800 s"):
        run(job, work_and_end_late, [2], monkeypatch, stall=0.01)


def test_a_crash_at_every_end_of_a_shard_is_an_error(job, monkeypatch):
    with pytest.raises(RuntimeError, match=r"crashed \(SIGSEGV\) after its last item"):
        run(job, work_and_crash_at_each_end, [2], monkeypatch)


def test_a_crash_at_the_end_after_a_finished_shard_costs_no_clip(job, monkeypatch):
    assert run(job, work_and_crash_at_the_end_of_shard_1, [1, 2], monkeypatch) == (3, 0)
    assert (job.out.parent / "strikes").read_bytes() == b"xx"


def test_progress_counts_each_clip_once_after_a_crash(job, monkeypatch):
    assert run(job, work_and_crash_at_a_clip, [4], monkeypatch) == (4, 1)
    finished = load_finished(job.out, 0)
    assert [(r.sample_id, r.reason) for r in finished.rejects] == [("0-2", "the decoder crashed (SIGSEGV)")]


def test_a_full_disk_is_an_error_of_the_build(job, monkeypatch):
    with pytest.raises(OSError, match="No space left on device"):
        run(job, work_and_fail, [1], monkeypatch)


def test_no_item_is_given_up_twice():
    """Otherwise a task could restart forever."""
    worker = object.__new__(pool._Worker)
    worker.task, worker.begun, worker.item = pool.Task(0, [SimpleNamespace()] * 3, {1: "hangs"}), True, 2
    assert worker.suspect() == 2
    worker.item = 1
    assert worker.suspect() is None


def test_hashing_and_writing_give_signs_of_life(tmp_path):
    beats = []
    (tmp_path / "v").write_bytes(bytes(3 << 20) + b"x")
    sample._identity(tmp_path / "v", lambda: beats.append("hashed"))
    with PayloadWriter(tmp_path, 0) as writer:
        writer.add("v", [PayloadFrame(float(t), float(t), b"jpeg") for t in range(129)], lambda: beats.append("wrote"))
    assert beats == ["hashed"] * 4 + ["wrote"] * 3
