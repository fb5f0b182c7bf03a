"""Out-of-memory errors and values that are not finite: how the guard and the loop of a run report them."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from ma2mba.data.batch import collate
from ma2mba.errors import UserError
from ma2mba.magc import Plan
from ma2mba.planner.memory import GIB
from ma2mba.training.faults import finite, guard
from ma2mba.training.faults.activity import Activity
from ma2mba.training.fit.pricing import Machine, config_of_size
from ma2mba.training.job import Job, build
from ma2mba.training.metrics import StepResult
from ma2mba.training.recipe.loading import parse_recipe
from ma2mba.training.recipe.schema import Trainable
from ma2mba.training.world import World
from tests.tiny import TINY_MODEL
from tests.unit.data.toy_shards import write_shards


@pytest.fixture
def job(tmp_path) -> Job:
    write_shards(tmp_path / "shards", [(3, 4), (0, 5), (7, 2), (1, 9)])
    values = {"stage": "stage2", "data": str(tmp_path / "shards"), "run": str(tmp_path / "run"), "model": TINY_MODEL}
    values |= {
        "trainable": {"projector": 1.0, "language_model": 1.0},
        "global_batch": 4,
        "micro_batch": 2,
        "steps": 3,
        "precision": "bf16",
    }
    return build(parse_recipe(values), World(0, 1, torch.device("cpu")))


@pytest.fixture
def activity(job) -> Activity:
    """An activity in the forward of a micro-batch."""
    made = Activity()
    made.begin_step(2, 80)
    made.begin_micro_batch(collate([job.dataset[0], job.dataset[2]], job.model.config.tokens_per_frame))
    return made


@pytest.fixture
def ends(monkeypatch):
    """Raise SystemExit where the process would end."""

    def end(code: int):
        raise SystemExit(code)

    monkeypatch.setattr(guard.os, "_exit", end)


def test_an_out_of_memory_error_is_reported_with_samples_and_predicted_peak(job, activity, ends, capsys):
    with pytest.raises(SystemExit) as end, guard.guard(job, activity):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
    assert end.value.code == 1
    said = capsys.readouterr().err
    assert re.search(
        r"rank 0 failed first \(step 2, forward for \d+ s, samples s0, s2\):\n"
        r"out of memory in a micro-batch of 2 x 43 tokens",
        said,
    )
    assert re.search(r"predicted peak: 0\.\d\d GiB \(sequence nesting", said)
    assert re.search(r"measured peak: \d+\.\d\d GiB before the allocation that failed", said)
    assert "Traceback" not in said
    assert "OutOfMemoryError" in (job.recipe.run_folder / "failures" / "rank-0.txt").read_text()


def test_a_plan_that_needs_less_is_named(job, activity, monkeypatch):
    monkeypatch.setattr(guard, "machine_of", lambda world, policy: Machine(80 * GIB))
    monkeypatch.setattr(guard, "held_by_others", lambda device: 3 * GIB)
    large = replace(
        job,
        model=SimpleNamespace(config=config_of_size("2.7b")),
        fitted_plan=replace(job.fitted_plan, plan=Plan(chunk_tokens=65536, group_layers=64)),
        recipe=job.recipe.model_copy(update={"trainable": Trainable(projector=1.0, vision=1.0)}),
    )
    activity.rows, activity.row_tokens, activity.frames = 1, 3600 * 144, 3600
    said = guard.out_of_memory(large, activity)
    assert "1 x 518,400 tokens, 3,600 frames" in said
    predicted = float(re.search(r"predicted peak: ([\d.]+) GiB \(sequence nesting, chunks of 65,536", said)[1])
    assert predicted > 80
    assert "the device has 80.00 GiB, of which other processes hold 3.00 GiB" in said
    assert re.search(r"Use magc: \{nesting: sequence, chunk_tokens: \d+, group_layers: \d+", said)
    said = guard.out_of_memory(replace(large, world=replace(large.world, sequence=2)), activity)
    share = float(re.search(r"predicted peak: ([\d.]+) GiB \(sequence nesting, chunks of 65,536", said)[1])
    assert share < 0.7 * predicted


def test_other_errors_keep_their_traceback(job, activity, ends, capsys):
    with pytest.raises(SystemExit) as end, guard.guard(job, activity):
        raise ArithmeticError("the fault of this test")
    assert end.value.code == 1
    assert capsys.readouterr().err.count("ArithmeticError: the fault of this test") == 1


@pytest.mark.parametrize(
    ("loss", "norm", "what"),
    [(float("nan"), 1.0, "loss is nan"), (2.0, float("inf"), "gradient norm is inf"), (2.0, 1.0, None)],
)
def test_loss_and_gradient_must_be_finite(job, loss, norm, what):
    plan = job.sampler.plan(job.position)
    engine = SimpleNamespace(barrier=lambda: None, gather=lambda losses_M: [losses_M.tolist()])
    shares_M = torch.tensor([0.5, loss])
    result = StepResult(
        loss=loss,
        gradient_norm=norm,
        rates={},
        tokens=plan.tokens,
        frames=plan.frames,
        targets=plan.targets,
        epoch=0,
        rank_tokens=[80],
        losses_M=shares_M,
    )
    path = job.recipe.run_folder / "replay" / "step-000002.json"
    if what is None:
        finite.stop_unless_finite(job, engine, 2, plan, result)
        assert not path.exists()
        return
    with pytest.raises(UserError, match=f"step 2: the {what}") as error:
        finite.stop_unless_finite(job, engine, 2, plan, result)
    kept = json.loads(path.read_text())
    good, bad = (", ".join(micro["sample_ids"]) for micro in kept["micro_batches"][0])
    named = f"(samples: {good}, {bad})"
    if what == "loss is nan":
        named = f"(micro-batches with such a loss: {bad}; other samples: {good})"
    assert named in str(error.value)
    first = kept["micro_batches"][0][0]
    assert first["sample_ids"] == [job.dataset.samples[i][1].sample_id for i in first["samples"]]
    own_targets = sum(job.dataset.targets_N[i] for i in first["samples"])
    assert first["loss"] == pytest.approx(0.5 * plan.targets / own_targets)
    assert kept["checkpoint"] is None


def test_ranks_that_share_samples_have_shares_of_their_losses():
    assert finite.summed_by_group([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, float("inf")]], 2) == [
        [4.0, 6.0],
        [12.0, float("inf")],
    ]
