"""What a run tells and what it forgets on resume."""

import json

import torch

from ma2mba.training.metrics import Metrics, StepResult, keep_until


def run(folder, first_step, steps, log_every=2):
    tokens = {"first_tokens": 100 * first_step, "tokens": 100 * steps, "predicted_bytes": 1 << 30}
    with Metrics(folder, "stage1", first_step, steps, log_every, torch.device("cpu"), **tokens) as metrics:
        for step in range(first_step, steps):
            result = StepResult(3.0 - step / 10, 1.5, {"projector": 0.1, "vision": 0.2}, tokens=100, frames=7, epoch=0)
            metrics.add(step + 1, result, waited=0.0)
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
