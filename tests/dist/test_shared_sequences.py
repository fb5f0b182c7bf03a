"""Ranks that share sequences, under the real launcher, against one process."""

import json

import pytest

from tests.dist.launching import curve, train

pytestmark = pytest.mark.timeout(1200)
STEPS = ("steps=4", "checkpoint.every=2")


@pytest.fixture(scope="module")
def alone(folder):
    train(folder, 0, "run=whole", *STEPS)
    return folder / "whole"


@pytest.fixture(scope="module")
def shared_run(folder):
    train(folder, 2, "run=split", "parallel.sequence=2", *STEPS)
    return folder / "split"


def test_two_ranks_on_one_sequence_have_the_curve_of_one_process(alone, shared_run):
    # measured: 8e-8 for losses, 2e-7 for gradient norms
    assert curve(shared_run) == pytest.approx(curve(alone), rel=1e-6)
    assert curve(shared_run, "gradient_norm") == pytest.approx(curve(alone, "gradient_norm"), rel=1e-6)


@pytest.mark.slow
def test_two_groups_of_two_ranks_under_zero3_too(folder, alone):
    policy = '{"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}'
    (folder / "zero3_split.json").write_text(policy)
    overrides = ("parallel.sequence=2", "zero_config=zero3_split.json", "micro_batch=1")
    train(folder, 4, "run=grid", *overrides, *STEPS)
    # measured: 8e-8 for losses, 2e-7 for gradient norms
    assert curve(folder / "grid") == pytest.approx(curve(alone), rel=1e-6)
    assert curve(folder / "grid", "gradient_norm") == pytest.approx(curve(alone, "gradient_norm"), rel=1e-6)


@pytest.mark.slow
def test_a_run_goes_on_with_its_ranks_shared_otherwise(folder, alone, shared_run):
    train(folder, 2, "run=rest", "resume=split/checkpoints/step-000002", *STEPS)
    lines = [json.loads(line) for line in (folder / "rest" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 4]
    assert [line["loss"] for line in lines] == pytest.approx(curve(alone)[2:], rel=1e-6)  # measured: 0
