"""The engine captures the weights that are trained, and its ranks need one plan."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from ma2mba.errors import UserError
from ma2mba.magc import Plan
from ma2mba.model.config import ModelConfig
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.training import engine as deepspeed_engine
from ma2mba.training import opening
from ma2mba.training.recipe.loading import parse_recipe
from ma2mba.training.world import World, ZeroPolicy, load_policy
from tests.dist.launching import RECIPE
from tests.tiny import TINY_MODEL


class Reached(Exception):
    """Ends the test where the streamer would be built."""


def test_chunks_are_recorded_of_the_weights_that_are_trained(monkeypatch):
    """DeepSpeed converts and moves a model in `initialize`: too late for the streamer."""

    def build_streamer(model, plan, group):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        raise Reached

    monkeypatch.setattr(deepspeed_engine, "build_streamer", build_streamer)
    recipe, model = parse_recipe(RECIPE | {"precision": "bf16"}), VideoMa2mba(ModelConfig.model_validate(TINY_MODEL))
    world, policy = World(0, 1, torch.device("cpu")), load_policy("zero1")
    with pytest.raises(Reached):
        deepspeed_engine.build_engine(model, recipe, Plan(graphs=True), world, policy)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"zero_optimization": {"stage": 1, "reduce_bucket_size": -1}}, "refuses 'reduce_bucket_size' of"),
        ({"zero_optimization": {"stage": 1}, "communication_data_type": "fp31"}, "ValueError: Invalid communication"),
        ({"zero_optimization": {"stage": 1}, "flops_profiler": {"enabled": []}}, "TypeError"),
    ],
)
def test_a_policy_that_deepspeed_cannot_read(values, expected):
    recipe, model = parse_recipe(RECIPE), VideoMa2mba(ModelConfig.model_validate(TINY_MODEL))
    world, policy = World(0, 1, torch.device("cpu")), ZeroPolicy(values, 1)
    with pytest.raises(UserError, match=expected):
        deepspeed_engine.build_engine(model, recipe, Plan(), world, policy)


@pytest.mark.parametrize("second", [64, 128])
def test_ranks_that_share_sequences_need_one_plan(second, monkeypatch):
    """With different numbers of chunks the ranks would deadlock."""

    def gather(values):
        said.append(values.tolist())
        return said

    said: list[list[float]] = []
    monkeypatch.setattr(opening, "build_engine", lambda *_: SimpleNamespace(gather=gather))
    monkeypatch.setattr(opening, "resume", lambda *_: None)
    for rank, chunk in enumerate((64, second)):
        world = World(rank, 2, torch.device("cpu"), sequence=2)
        recipe = SimpleNamespace(seed=0)
        job = SimpleNamespace(
            model=None, start=None, recipe=recipe, plan=Plan(chunk_tokens=chunk), world=world, policy=None
        )
        with pytest.raises(UserError, match="chunk_tokens=128") if chunk == 128 else nullcontext():
            opening.open_engine(job)
