"""Training under the real launcher: neither the number of ranks nor kills change the result."""

import random
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from ma2mba.model.pretrained import load_model
from ma2mba.training.checkpoint.folder import is_complete, latest
from ma2mba.training.launcher import ranks_of
from tests.dist import chaos
from tests.dist.launching import ROOT, command, curve, running, train

FAULTY = Path(__file__).with_name("faulty_train.py")
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def undisturbed(folder):
    """A run of 9 steps on 2 ranks with a checkpoint every 3."""
    said = train(folder, 2, "run=undisturbed")
    assert "step 9/9" in said
    return folder / "undisturbed"


@pytest.fixture(scope="module")
def alone(folder):
    """The same on one rank, started without the launcher."""
    train(folder, 0, "run=alone")
    return folder / "alone"


def test_a_run_leaves_what_it_should(undisturbed):
    assert (undisturbed / "checkpoints" / "latest").read_text() == "step-000009\n"
    assert sorted(p.name for p in (undisturbed / "checkpoints").iterdir()) == [
        "latest",
        "step-000003",
        "step-000006",
        "step-000009",
    ]
    assert "chunk_tokens: 16" in (undisturbed / "recipe.yaml").read_text()
    assert list((undisturbed / "tensorboard").iterdir())
    losses = curve(undisturbed)
    assert losses[-1] < losses[0]
    predicted, measured = (curve(undisturbed, f"peak_memory_{kind}bytes") for kind in ("predicted_", ""))
    assert len(set(predicted)) == 1
    assert measured == sorted(measured)
    # Both are bytes; what a step adds to the program itself, benchmarks/planner.py compares (measured: 0.86)
    assert 0.5 < predicted[0] / measured[-1] < 1.5
    early, late = (load_model(undisturbed / f"checkpoints/step-00000{step}/model")[0] for step in (3, 9))
    moved = [name for name, p in early.named_parameters() if not torch.equal(p, late.get_parameter(name))]
    assert moved == [name for name, _ in early.named_parameters()]


def test_one_rank_has_the_same_curve_as_two(alone, undisturbed):
    # measured: 1e-7 for losses, 2e-7 for gradient norms
    assert curve(alone) == pytest.approx(curve(undisturbed), rel=1e-5)
    norms = curve(undisturbed, "gradient_norm")
    assert curve(alone, "gradient_norm") == pytest.approx(norms, rel=1e-5)


def test_killed_twice_and_started_again_the_run_is_as_if_undisturbed(folder, undisturbed, monkeypatch):
    """A short `make chaos`: one kill in a save, which is slow enough to be hit, and one in a step."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MA2MBA_TEST_FAULT", "save:0:3")
    start = chaos.Starter(Path("recipe.yaml"), [], 2, Path(), FAULTY)
    kills = chaos.disturb(start, chaos.pace_of(undisturbed), 2, random.Random(0), Console(quiet=True))
    assert [kill.whole for kill in kills] == [True, True]
    assert kills[0].phase == "in a save"
    assert chaos.compare(undisturbed, folder / "killed") == []
    assert curve(folder / "killed") == curve(undisturbed)


def test_signals_save_and_end_with_0_whoever_gets_them(folder, undisturbed, monkeypatch):
    """Signals while rank 1 is slow and rank 0 waits for it: the ranks give that step up."""
    overrides = ("run=asked", "checkpoint.every=1000")
    monkeypatch.setenv("MA2MBA_TEST_FAULT", "slow:1:3")
    wrapped = command(2, *overrides, script=FAULTY)
    wrapped[1] = str(ROOT / "launch" / "run.py")
    said, first = ask_when_slow(folder, wrapped, lambda process: process.send_signal(signal.SIGTERM))
    assert "SIGTERM: asking 2 ranks to save and stop" in said
    assert first == 2
    monkeypatch.setenv("MA2MBA_TEST_FAULT", "slow:1:4")
    slowly = command(2, *overrides, script=FAULTY)
    said, second = ask_when_slow(folder, slowly, lambda process: signal_one_rank(process.pid))
    assert re.search(r"signal to another rank: stopped after step \d of 9\. Run the same command again to resume", said)
    assert second == 3
    train(folder, 2, *overrides)
    assert chaos.compare(undisturbed, folder / "asked") == []


@pytest.mark.slow
def test_steps_go_on_while_a_checkpoint_is_written_and_a_signal_waits_for_it(folder, undisturbed, monkeypatch):
    monkeypatch.setenv("MA2MBA_TEST_FAULT", "save:0:3")
    (folder / "save").unlink(missing_ok=True)
    run, overrides = folder / "written", ("run=written", "steps=9")
    with running(command(2, *overrides, script=FAULTY), folder) as process:
        chaos.wait_for(lambda: chaos.last_step(run) > 3, process)
        assert latest(run) is None
        signal_one_rank(process.pid)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    first, newest = run / "checkpoints" / "step-000003", latest(run)
    assert is_complete(first)
    assert is_complete(newest)
    assert int(newest.name[5:]) == len(curve(run)) > 3
    assert re.search(rf"saved {first} in \d+\.\d s \(training stood still for \d\.\d s\)", " ".join(said.split()))
    train(folder, 2, *overrides)
    assert chaos.compare(undisturbed, run) == []


def signal_one_rank(launcher):
    (rank,) = (rank for rank in ranks_of(launcher) if "--local_rank=1" in rank.cmdline())
    rank.send_signal(signal.SIGUSR1)


def ask_when_slow(folder, arguments, send):
    """Start training, signal when rank 1 is slow, and wait. Return the output and the step of the latest checkpoint."""
    (folder / "slow").unlink(missing_ok=True)
    with running(arguments, folder) as process:
        chaos.wait_for((folder / "slow").is_file, process)
        asked = time.monotonic()
        send(process)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    print(f"\nasked to stop, and gone after {time.monotonic() - asked:.1f} s")
    newest = latest(folder / "asked")
    assert is_complete(newest)
    step = int(newest.name[5:])
    assert len(curve(folder / "asked")) == step
    return " ".join(said.split()), step


def test_a_finished_run_says_so(folder, alone):
    before = (alone / "metrics.jsonl").read_bytes()
    said = " ".join(train(folder, 0, "run=alone").split())  # lines wrap where the path is long
    assert "is finished (9 steps)" in said
    assert (alone / "metrics.jsonl").read_bytes() == before


def test_the_next_stage_starts_from_the_run_before_with_parts_frozen(folder, undisturbed):
    overrides = ["run=next", "init_from=undisturbed", "model=null", "steps=2", "trainable.vision=null"]
    train(folder, 0, *overrides, "trainable.language_model=null")
    before, after = (
        load_file(folder / run / "model" / "model.safetensors")
        for run in ("undisturbed/checkpoints/step-000009", "next/checkpoints/step-000002")
    )
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"projector"}
