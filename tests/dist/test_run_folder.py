"""Two launches in one run folder, changed data, and folders that cannot be written: exit code 2, nothing is lost."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from ma2mba.training.checkpoint.folder import is_complete, latest
from tests.dist import chaos
from tests.dist.conftest import SIZES
from tests.dist.launching import ROOT, TRAINER, command, curve, finished, launch, running
from tests.unit.data.toy_shards import write_shards

FAULTY = Path(__file__).with_name("faulty_train.py")


def error_of(done) -> str:
    """Return the error of a refused launch, which is one line."""
    assert done.returncode == 2, done.stdout
    assert "Traceback" not in done.stdout
    (error,) = (line for line in done.stdout.splitlines() if line.startswith("error: "))
    return error


def test_a_second_launch_is_refused_and_the_first_loses_nothing(folder, monkeypatch):
    monkeypatch.setenv("MA2MBA_TEST_FAULT", "slow:0:4")
    (folder / "slow").unlink(missing_ok=True)
    run = folder / "locked"
    with running(command(0, "run=locked", script=FAULTY), folder) as first:
        chaos.wait_for((folder / "slow").is_file, first)
        metrics = (run / "metrics.jsonl").read_bytes()
        error = error_of(launch(folder, 2, "run=locked"))
        assert error.startswith(f"error: {run}: process {first.pid} on {os.uname().nodename} has trained here since ")
        assert (run / "metrics.jsonl").read_bytes().startswith(metrics)
        assert finished(dry_run("run=locked"), folder, PYTHONPATH=str(ROOT)).returncode == 0
        first.send_signal(signal.SIGTERM)
        said, _ = first.communicate(timeout=60)
    assert first.returncode == 0, said
    assert is_complete(latest(run))
    assert len(curve(run)) == int(latest(run).name[5:]) >= 3
    assert not (run / "lock").exists()


def dry_run(*overrides: str) -> list[str]:
    return [sys.executable, "-m", "ma2mba", "train", "recipe.yaml", *overrides, "--dry-run"]


def test_what_a_run_resumes_must_be_what_it_began(folder, tmp_path):
    """Shards with other answers and pictures, and other passes of order length."""
    data = shutil.copytree(folder / "shards", tmp_path / "shards")
    fixed = ("run=resumed", "order=length", "checkpoint.every=1")
    assert launch(folder, 0, *fixed, f"data={data}", "steps=2").returncode == 0
    metrics = (folder / "resumed" / "metrics.jsonl").read_bytes()
    error = error_of(launch(folder, 0, *fixed, f"data={data}", "steps=6"))
    assert "steps: 6 makes 3 passes over the data, but the run began with 1 (steps=2)" in error
    shutil.rmtree(data)
    write_shards(data, SIZES, seed=1)
    error = error_of(launch(folder, 2, *fixed, f"data={data}", "steps=2"))
    assert error.startswith(f"error: {data}: other answers, labels or pictures under the same sample ids")
    assert (folder / "resumed" / "metrics.jsonl").read_bytes() == metrics
    done = launch(folder, 0, *fixed, "steps=2")  # the folder that was copied, elsewhere
    assert done.returncode == 0, done.stdout
    assert "is finished (2 steps)" in " ".join(done.stdout.split())


def test_a_disk_that_fills_between_saves(folder, monkeypatch):
    monkeypatch.setenv("MA2MBA_TEST_FAULT", "full:0:5")
    error = error_of(launch(folder, 2, "run=full", script=FAULTY))
    assert error.startswith(f"error: {folder}/full: cannot be written (No space left on device). Free disk space")
    assert is_complete(latest(folder / "full"))
    assert not (folder / "full" / "lock").exists()
    assert len(curve(folder / "full")) == 4
    assert launch(folder, 0, "run=full", "steps=6").returncode == 0
    assert len(curve(folder / "full")) == 6


@pytest.mark.parametrize("rank", [0, 1])
def test_a_disk_that_fills_while_steps_go_on_ends_the_run_at_the_next_step(folder, monkeypatch, rank):
    monkeypatch.setenv("MA2MBA_TEST_FAULT", f"disk:{rank}:4")
    run = folder / f"disk{rank}"
    error = error_of(launch(folder, 2, f"run=disk{rank}", "checkpoint.every=2", script=FAULTY))
    assert error.startswith(f"error: {run}/checkpoints/.step-000004.tmp: cannot be written (No space left on device). ")
    assert latest(run).name == "step-000002"
    assert is_complete(latest(run))
    assert 4 <= len(curve(run)) < 9


@pytest.fixture
def without_rights():
    """The words that start a command for which the modes of files count, also for root."""
    if os.geteuid() != 0:
        return []
    if not shutil.which("setpriv"):
        pytest.skip("root may write everywhere: needs setpriv")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


def test_checkpoints_that_cannot_be_written_or_read_are_found_before_the_first_step(folder, tmp_path, without_rights):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints").chmod(0o555)
    train = [*without_rights, *command(0, f"run={run}", script=TRAINER)]
    error = error_of(finished(train, folder))
    assert error.startswith(f"error: {run}/checkpoints: cannot be written (Permission denied). Make it writable")
    (run / "checkpoints").chmod(0o755)
    (run / "checkpoints" / "latest").touch(0o000)
    error = error_of(finished(train, folder))
    assert error.startswith(f"error: {run}/checkpoints/latest: cannot be read (Permission denied)")
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints"]
