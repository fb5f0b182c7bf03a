"""The demo as `make demo` runs it, made small: every command is real, the training too, on two ranks."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ma2mba.cli.inspect import describe
from ma2mba.model.pretrained import load_model
from tests.dist.launching import kill_all

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("stage1", "stage1_5", "stage2", "stage2_long")
TIMEOUT_SECONDS = 1100
pytestmark = pytest.mark.timeout(1200)


def demo(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "examples/demo/run.py"), "--tiny", "--out", str(out), *options]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=TIMEOUT_SECONDS)
    finally:
        kill_all(process)
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "out"
    done = demo(folder)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return folder


def test_the_report_is_whole(out):
    report = json.loads((out / "report.json").read_text())
    assert set(report["accuracy_by_frames"]) == {"8", "1fps"}
    assert report["needle_accuracy_1fps"] == report["accuracy_by_frames"]["1fps"]
    assert report["needle_accuracy_8_frames"] == report["accuracy_by_frames"]["8"]
    assert 0 < report["chance"] < 0.5
    grid = report["needle_grid"]
    assert (grid["lengths_seconds"], grid["questions_by_length"]) == ([4, 8], [11, 11])
    assert grid["depths"] == [n / 10 for n in range(11)]
    for stage in STAGES:
        assert report["loss_curves"][stage]["step"] == [1, 2]
        assert report["tokens_per_second"][stage] > 0
        assert report["recipes"][stage]["steps"] == 2
    assert report["machine"]["torch"]
    assert {"toy videos", *STAGES, "export", "eval 1fps", "needles"} <= set(report["seconds"])
    assert (out / "report.png").read_bytes().startswith(b"\x89PNG")


def test_each_stage_goes_on_from_the_one_before_and_the_model_loads(out):
    assert json.loads((out / "report.json").read_text())["recipes"]["stage2"]["init_from"] == str(out / "stage1_5")
    model, _ = load_model(out / "model")
    assert describe(out / "model")["parameters"] == sum(p.numel() for p in model.parameters())
    assert describe(out / "stage2") | {"loss": 0} == {
        "kind": "run",
        "stage": "stage2",
        "steps": 2,
        "loss": 0,
        "checkpoints": ["step-000002"],
        "latest": "step-000002",
    }


def test_the_shards_are_described(out):
    facts = describe(out / "shards/stage1")
    assert facts["kind"] == "shard"
    assert facts["samples"] == 6, "4 stills and 2 clips"
    assert facts["rejected"] == 0
    assert facts["image_size"] == 56


def test_a_second_run_skips_what_is_finished_and_redoes_what_is_missing(out):
    weights = (out / "model/model.safetensors").read_bytes()
    shutil.rmtree(out / "eval-1fps")
    done = demo(out)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    first, second = [line for line in done.stdout.splitlines() if line.startswith("$ ")]
    assert "--frames 1fps" in first
    assert "--needle" in second, "later steps are repeated"
    assert (out / "model/model.safetensors").read_bytes() == weights


def test_a_step_that_fails_stops_the_demo_with_its_exit_code(out):
    (out / "toy/eval.jsonl").write_text("not json\n")
    shutil.rmtree(out / "eval-1fps")
    done = demo(out)
    assert done.returncode == 2
    assert "eval 1fps failed (exit code 2)" in done.stdout
    assert "eval.jsonl, line 1: not JSON" in done.stderr
