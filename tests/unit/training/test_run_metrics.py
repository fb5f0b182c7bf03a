"""What a run reports, and which lines it drops on resume."""

import errno
import io
import json
import threading

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

from ma2mba.errors import UserError
from ma2mba.model.config import ModelConfig
from ma2mba.training.flops import ModelFlops
from ma2mba.training.metrics import Metrics, StepResult, keep_until
from tests.tiny import TINY_MODEL

FLOPS = ModelFlops(ModelConfig.model_validate(TINY_MODEL), ("projector",))


def result_of(step):
    rates = {"projector": 0.1, "vision": 0.2}
    share = {"tokens": 100, "frames": 7, "targets": 5, "rank_tokens": [90, 30]}
    return StepResult(3.0 - step / 10, 1.5, rates, epoch=0, losses_M=torch.zeros(1), **share)


def run(folder, first_step, steps, log_every=2, peak_flops=None, save_at=None):
    tokens = {"first_tokens": 100 * first_step, "tokens": 100 * steps, "flops": FLOPS, "peak_flops": peak_flops} | {
        "predicted_bytes": 1 << 30
    }
    with Metrics(folder, "stage1", first_step, steps, log_every, torch.device("cpu"), **tokens) as metrics:
        for step in range(first_step, steps):
            metrics.add(step + 1, result_of(step), waited=0.0)
            if step + 1 == save_at:
                metrics.stood_still(save_at, 0.25)
                metrics.saved(save_at, folder, 7.0)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_first_last_and_every_nth_step_are_written(tmp_path):
    lines = run(tmp_path, 0, 7, log_every=3)
    assert [line["step"] for line in lines] == [1, 3, 6, 7]
    assert lines[1]["loss"] == 2.8
    assert lines[1]["lr"] == {"projector": 0.1, "vision": 0.2}
    assert lines[1]["peak_memory_bytes"] > 1e7
    assert lines[1]["peak_memory_predicted_bytes"] == 1 << 30
    # steps 2 and 3 lie between the lines: 200 tokens and 14 frames in the same time
    assert abs(lines[1]["tokens_per_second"] / lines[1]["frames_per_second"] - 200 / 14) < 1e-6
    assert list((tmp_path / "tensorboard").iterdir())


def test_utilisation_and_imbalance(tmp_path):
    line = run(tmp_path, 0, 1, peak_flops=1e12)[0]
    needed = FLOPS.of_step(100, 7, 5)
    assert line["model_flop_utilisation"] == pytest.approx(needed * line["tokens_per_second"] / 100 / 1e12)
    assert line["rank_tokens"] == [90, 30]
    assert line["rank_imbalance"] == 1.5
    assert run(tmp_path, 1, 2)[-1]["model_flop_utilisation"] is None


def test_the_duration_of_a_checkpoint_is_reported_and_excluded_from_speeds(tmp_path):
    lines = run(tmp_path, 0, 4, log_every=1, save_at=2)
    assert [line["checkpoint_seconds"] for line in lines] == [0, 0, 0.25, 0]
    assert lines[2]["tokens_per_second"] < 0  # the made-up quarter of a second is more than the step took
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in board.Scalars("checkpoint_seconds")] == [(2, 0.25)]
    assert [(e.step, e.value) for e in board.Scalars("checkpoint_write_seconds")] == [(2, 7.0)]
    assert {"lr/projector", "loss", "rank_imbalance", "frames_per_second"} < set(board.Tags()["scalars"])


def test_lines_after_the_resumed_step_are_dropped(tmp_path):
    before = run(tmp_path, 0, 6)
    again = run(tmp_path, 4, 8)
    assert [line["step"] for line in again] == [1, 2, 4, 5, 6, 8]
    assert again[:3] == before[:3]


def test_a_line_that_was_cut_off_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    keep_until(path, 10)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_disk_that_fills_between_saves_is_one_error_that_the_user_can_fix(tmp_path, monkeypatch):
    write = Metrics._write

    def on_a_full_disk(metrics, step, line):
        if step == 3:
            metrics._file = io.TextIOWrapper(io.FileIO("/dev/full", "w"))
        write(metrics, step, line)

    monkeypatch.setattr(Metrics, "_write", on_a_full_disk)
    with pytest.raises(
        UserError, match=rf"^{tmp_path}: cannot be written \(No space left on device\)\. Free disk space"
    ):
        run(tmp_path, 0, 4, log_every=1)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_a_full_disk_in_the_thread_of_tensorboard_is_the_same_error(tmp_path, monkeypatch, capsys):
    def write(writer, data):
        if (tmp_path / "metrics.jsonl").stat().st_size:  # the file's head is written before the first step
            raise OSError(errno.ENOSPC, "No space left on device")
        sound(writer, data)

    sound = RecordWriter.write
    monkeypatch.setattr(RecordWriter, "write", write)
    monkeypatch.setattr(threading, "excepthook", lambda facts: print("reported", facts.exc_value))
    with pytest.raises(UserError, match=rf"^{tmp_path}: cannot be written \(No space left on device\)"):
        run(tmp_path, 0, 50, log_every=1)
    assert "reported" not in capsys.readouterr().out
