"""The report says what the runs and the evaluations said."""

import json

import numpy as np
import pytest
from PIL import Image

from ma2mba.evaluation.report import build_report, curve, write_report
from ma2mba.plots import smooth
from ma2mba.text import read_jsonl


@pytest.fixture
def runs(tmp_path):
    folders = {}
    for k, stage in enumerate(("stage1", "stage1_5", "stage2")):
        folders[stage] = tmp_path / stage
        folders[stage].mkdir()
        (folders[stage] / "recipe.yaml").write_text(f"stage: {stage}\nsteps: 30\n")
        lines = [{"step": i, "loss": 3.0 / (i + k), "tokens_per_second": 100.0 * i} for i in (1, 10, 20, 30)]
        (folders[stage] / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folders


NEEDLES = {
    "lengths_seconds": [60, 3600],
    "depths": [0.0, 0.5, 1.0],
    "accuracy": [[1.0, 1.0, 1.0], [0.0, None, 0.75]],
    "questions": [[4, 4, 4], [4, 0, 4]],
    "accuracy_by_length": [1.0, 0.375],
    "questions_by_length": [12, 8],
    "chance": 0.125,
}


def result(accuracy):
    return {"tasks": {"needle": {"n": 48, "accuracy": accuracy, "chance": 0.125}}}


def test_report_has_every_number_and_a_picture(runs, tmp_path):
    results = {"8": result(0.5), "32": result(0.75), "1fps": result(1.0)}
    report = build_report(tmp_path / "model", results, runs, {"toy": 12.5}, NEEDLES)
    numbers, picture = write_report(report, tmp_path / "out")
    read = json.loads(numbers.read_text())
    assert read["needle_accuracy_1fps"] == 1.0
    assert read["needle_accuracy_8_frames"] == 0.5
    assert read["chance"] == 0.125
    assert read["model"] == str(tmp_path / "model")
    assert read["accuracy_by_frames"] == {"8": 0.5, "32": 0.75, "1fps": 1.0}
    assert read["loss_curves"]["stage1"] == {"step": [1, 10, 20, 30], "loss": [3.0, 0.3, 0.15, 0.1]}
    assert read["tokens_per_second"] == {"stage1": 1500.0, "stage1_5": 1500.0, "stage2": 1500.0}
    assert read["needle_grid"] == NEEDLES
    assert read["recipes"]["stage2"] == {"stage": "stage2", "steps": 30}
    assert read["seconds"] == {"toy": 12.5}
    assert read["machine"]["cores"] >= 1
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape == (1350, 2025, 3)
    assert (pixels.reshape(-1, 3) == [217, 72, 15]).all(1).any(), "the point at 1 FPS is not in its colour"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.json", "report.png"]


def test_a_stage_that_logged_nothing_is_left_out_of_the_curves(runs, tmp_path):
    (runs["stage1_5"] / "metrics.jsonl").unlink()
    report = build_report(tmp_path / "model", {"8": result(0.5)}, runs, {}, NEEDLES)
    assert report["loss_curves"]["stage1_5"] == {"step": [], "loss": []}
    assert report["tokens_per_second"]["stage1_5"] is None
    assert report["needle_accuracy_1fps"] is None
    write_report(report, tmp_path / "out")


def test_the_later_line_of_a_step_counts_and_a_cut_line_ends_the_file(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n{"step": 1, "loss": 1}\n{"step": 2, "lo')
    assert len(list(read_jsonl(tmp_path / "metrics.jsonl"))) == 2
    assert curve(tmp_path, "loss") == {"step": [1], "loss": [1]}


def test_smoothing_keeps_a_level_and_evens_out_noise():
    assert smooth([2.0] * 50) == pytest.approx([2.0] * 50)
    assert smooth([0.0, 2.0] * 50)[10:-10] == pytest.approx(np.ones(80), abs=0.21)
    assert smooth([1.0, 2.0, 3.0]) == pytest.approx([1.5, 2.0, 2.5])
