"""The plan of a run: chosen for the longest samples of its data, or an error before the first step."""

import logging
import re

import numpy as np
import pytest
import torch
import yaml

from ma2mba.errors import UserError
from ma2mba.magc import Plan
from ma2mba.planner.memory import USABLE, Host
from ma2mba.training.fit import fitting
from ma2mba.training.job import build
from ma2mba.training.recipe.loading import parse_recipe
from ma2mba.training.world import World
from tests.tiny import TINY_MODEL
from tests.unit.data.toy_shards import write_shards

SIZES = [(30, 2), (0, 40), (2, 3), (1, 1), (2, 2), (5, 1), (4, 4), (1, 6)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("fitting") / "shards", SIZES)


def recipe(shards, **changes):
    values = {"stage": "stage1", "data": str(shards), "run": str(shards.parent / "run"), "model": TINY_MODEL}
    values |= {"trainable": {"projector": 1.0, "language_model": 1.0}, "global_batch": 8, "epochs": 1}
    return parse_recipe(values | {"precision": "fp32"} | changes)


def world(ranks: int = 1) -> World:
    return World(0, ranks, torch.device("cpu"), ranks)


def test_a_plan_is_chosen_and_logged(shards, caplog):
    with caplog.at_level(logging.INFO, "ma2mba.plan"):
        job = build(recipe(shards), world())
    assert job.recipe.magc == "auto"
    assert job.plan.nesting == "sequence"
    assert job.plan.graphs is False
    assert fitting.describe(job.plan) in caplog.text
    parts = job.fitted_plan.prediction.device
    assert {"program", "weights", "gradients", "optimizer", "cell", "loss"} <= set(parts)
    assert f"at most {int(job.dataset.length_N.max()):,} tokens: " in caplog.text


def test_less_memory_changes_the_plan_and_too_little_is_an_error(shards, monkeypatch):
    roomy = build(recipe(shards, micro_batch=4), world()).fitted_plan
    needed = roomy.prediction.device_bytes - roomy.prediction.device["program"]
    room = int(needed / fitting.HOST_SHARE / USABLE)
    monkeypatch.setattr(Host, "memory", lambda self: int(room * 0.97))
    tight = build(recipe(shards, micro_batch=4), world()).fitted_plan
    assert tight.plan != roomy.plan
    assert tight.prediction.seconds >= roomy.prediction.seconds
    monkeypatch.setattr(Host, "memory", lambda self: room // 100)
    with pytest.raises(UserError, match=r"magc: no plan fits 1\d\d tokens .* the smallest plan needs"):
        build(recipe(shards, micro_batch=4), world())


def test_a_given_plan_that_does_not_fit_is_an_error_that_names_one_that_fits(shards, monkeypatch):
    given = {"chunk_tokens": 256, "group_layers": 2}
    fits = build(recipe(shards, magc=given, micro_batch=4), world())
    assert fits.plan == Plan(**given)
    needed = fits.fitted_plan.prediction.device_bytes - fits.fitted_plan.prediction.device["program"]
    monkeypatch.setattr(Host, "memory", lambda self: int(0.97 * needed / fitting.HOST_SHARE / USABLE))
    with pytest.raises(UserError, match=r"chunks of 256 tokens, .* needs 0.0 GiB \(weights .*\. Use magc: {"):
        build(recipe(shards, magc=given, micro_batch=4), world())


def test_ranks_that_share_sequences_must_hold_one_share_each(shards, monkeypatch, caplog):
    given = {"chunk_tokens": 256, "group_layers": 2}
    whole = build(recipe(shards, magc=given, micro_batch=4), world(2)).fitted_plan.prediction
    with caplog.at_level(logging.INFO, "ma2mba.plan"):
        part = build(recipe(shards, magc=given, micro_batch=4, parallel={"sequence": 2}), world(2)).fitted_plan
    assert part.plan == part.prediction.plan == Plan(**given)
    assert part.prediction.device["cell"] < 0.6 * whole.device["cell"]
    assert re.search(r"predicted for at most [\d,]+ tokens on each of 2 ranks", caplog.text)
    needed = part.prediction.device_bytes - part.prediction.device["program"]
    monkeypatch.setattr(Host, "memory", lambda self: int(2 * 0.9 * needed / fitting.HOST_SHARE / USABLE))
    with pytest.raises(UserError, match=r"chunks of 256 tokens, .*\. Use magc: {") as refused:
        build(recipe(shards, magc=given, micro_batch=4, parallel={"sequence": 2}), world(2))
    named = yaml.safe_load(str(refused.value).split("Use magc: ")[1])
    fits = build(recipe(shards, magc=named, micro_batch=4, parallel={"sequence": 2}), world(2)).fitted_plan
    assert fits.prediction.device_bytes < part.prediction.device_bytes


def test_memos_need_all_layers_in_one_group(shards):
    layers = TINY_MODEL["language_model"]["n_layer"]
    given = {"chunk_tokens": 64, "group_layers": layers, "memo_chunks": 2}
    assert build(recipe(shards, magc=given), world()).plan == Plan(**given)
    said = rf"memo_chunks: 2 .* all {layers} layers in one group. .* magc.memo_chunks: 0 or magc.group_layers: {layers}"
    with pytest.raises(UserError, match=said):
        build(recipe(shards, magc=given | {"group_layers": 1}), world())


def test_graphs_need_all_layers_in_one_group_and_weights_that_do_not_move(shards):
    layers = TINY_MODEL["language_model"]["n_layer"]
    given = {"chunk_tokens": 64, "group_layers": layers, "graphs": True}
    assert build(recipe(shards, magc=given), world()).plan == Plan(**given)
    said = rf"magc.graphs: true .* all {layers} layers in one group. .* false or magc.group_layers: {layers}"
    with pytest.raises(UserError, match=said):
        build(recipe(shards, magc={"graphs": True}), world())
    with pytest.raises(UserError, match=r"graphs: true is incompatible with zero_config: \(a policy of ZeRO stage 3\)"):
        build(recipe(shards, magc=given, zero_config="zero3"), world())


def test_ranks_of_a_host_share_its_memory(monkeypatch):
    monkeypatch.setattr(Host, "memory", lambda self: 1000)
    policy = fitting.ZeroPolicy({}, 1)
    assert fitting.machine_of(world(4), policy).device_bytes == pytest.approx(fitting.HOST_SHARE * 250)
    assert fitting.machine_of(world(4), policy).one_memory
    environment = {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "LOCAL_SIZE": "8"}
    assert World.from_environment(environment).local_size == 8


def test_the_heaviest_micro_batches(shards):
    job = build(recipe(shards, micro_batch_tokens=270), world())
    (one, alone), (rows, together) = fitting.heaviest(job.recipe, world(), job.model.config, job.dataset)
    length_N = job.dataset.length_N
    assert (one, alone.tokens, alone.unit) == (1, length_N.max(), job.model.config.tokens_per_frame)
    assert rows > 1
    assert rows * together.tokens <= 270
    seen = [np.array(m) for plan, _ in zip(job.sampler.plans(job.position), range(job.steps), strict=False)
            for rank in plan.micro_batches for m in rank]  # fmt: skip
    assert max(map(len, seen)) <= rows
    assert max(length_N[m].max() for m in seen) <= alone.tokens
