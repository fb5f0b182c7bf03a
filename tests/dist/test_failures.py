"""What a user sees when a rank fails or hangs, or the loss is not a number, inside a step of 2 ranks.

Collectives of a watched run wait for days, so a job that ends did not wait for them.
"""

import json
import re
from pathlib import Path

import pytest

from tests.dist.launching import launch

FAULTY = Path(__file__).with_name("faulty_train.py")


@pytest.fixture
def fail(folder, monkeypatch):
    """Launch with a fault; return the exit code, the output and the run folder."""

    def run(fault: str, *overrides: str):
        monkeypatch.setenv("MA2MBA_TEST_FAULT", fault)
        name = "fails-" + fault.replace(":", "-")
        done = launch(folder, 2, f"run={name}", *overrides, script=FAULTY)
        return done.returncode, done.stdout, folder / name

    return run


def test_a_rank_that_fails_is_heard_first_and_ends_the_job(fail):
    code, said, run = fail("raise:1:2")
    assert code == 1, said
    assert "rank 1 failed first (step 2, forward" in said
    assert said.count("Traceback") == 1
    assert "ArithmeticError: the fault of this test" in said
    assert "ArithmeticError" in (run / "failures" / "rank-1.txt").read_text()
    first = json.loads((run / "failures" / "first.json").read_text())
    assert (first["rank"], first["step"], first["phase"]) == (1, 2, "forward")
    assert len(first["sample_ids"]) == 2


def test_a_step_that_hangs_ends_every_rank_with_its_story(fail):
    code, said, run = fail("hang:1:5", "watchdog.seconds=10", "watchdog.factor=1")
    assert code == 3, said
    assert re.search(r"rank [01]: stuck for \d+ s \(the limit is 10 s\): step 5", said)
    assert re.search(r"rank 0: step 5, backward for \d+ s, samples s\d, s\d, at training/faults/stop_vote.py", said)
    assert re.search(r"rank 1: step 5, forward for \d+ s, samples s\d, s\d, .*faulty_train.py:\d+ faulty", said)
    for rank, phase in ((0, "backward"), (1, "forward")):
        facts = json.loads((run / "stuck" / f"rank-{rank}.json").read_text())
        assert (facts["rank"], facts["step"], facts["phase"]) == (rank, 5, phase)
        assert "ma2mba/training/loop.py" in (run / "stuck" / f"rank-{rank}.txt").read_text()


def test_a_loss_that_is_no_number_stops_the_run_and_its_step_can_be_replayed(fail):
    code, said, run = fail("nan:1:4")
    assert code == 2, said
    assert "step 4: the loss is nan" in said
    assert "Traceback" not in said
    kept = json.loads((run / "replay" / "step-000004.json").read_text())
    assert kept["checkpoint"] == f"{run}/checkpoints/step-000003"
    assert [len(rank) for rank in kept["micro_batches"]] == [1, 1]
    losses = [micro["loss"] for rank in kept["micro_batches"] for micro in rank]
    assert losses[1] == "NaN"
    assert 2 < losses[0] < 4
    assert not (run / "checkpoints" / "step-000006").exists()
    alone = replay(run / "replay" / "step-000004.json")
    assert alone["reproduced"] is False  # the fault was not in weights or data
    assert sorted(s["sample_id"] for s in alone["samples"]) == sorted(
        name for rank in kept["micro_batches"] for micro in rank for name in micro["sample_ids"]
    )


def replay(path: Path) -> dict:
    from typer.testing import CliRunner

    from ma2mba.cli.app import app

    done = CliRunner().invoke(app, ["replay", str(path), "--device", "cpu", "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)
