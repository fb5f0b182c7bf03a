"""Which parameters train, in which group, and how the learning rate moves."""

import pytest
from torch import nn

from ma2mba.model.config import ModelConfig
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.training.optimizer import parameter_groups, rate_factor, set_trainable
from ma2mba.training.recipe.loading import parse_recipe
from ma2mba.training.recipe.schema import Schedule
from tests.tiny import TINY_MODEL, UNTIED_MODEL


@pytest.fixture
def model() -> nn.Module:
    return VideoMa2mba(ModelConfig.model_validate(TINY_MODEL))


def recipe(**trainable):
    values = {"stage": "stage2", "data": "d", "run": "r", "model": TINY_MODEL, "global_batch": 1, "steps": 1}
    return parse_recipe(values | {"trainable": trainable})


@pytest.mark.parametrize("values", [TINY_MODEL, UNTIED_MODEL], ids=["tied", "untied"])
def test_every_parameter_of_a_trained_part_is_in_one_group(values):
    model = VideoMa2mba(ModelConfig.model_validate(values))
    chosen = recipe(projector=3.0, language_model=2.0, vision=1.0)
    set_trainable(model, chosen.trainable)
    groups = parameter_groups(model, chosen)
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in model.parameters())
    for group in groups:
        assert group["lr"] == {"projector": 3.0, "language_model": 2.0, "vision": 1.0}[group["name"]]
        assert {id(p) for p in group["params"]} <= {id(p) for p in model.get_submodule(group["name"]).parameters()}
        assert all(p.requires_grad for p in group["params"])


def test_no_weight_decay_on_anything_of_one_dimension(model):
    groups = parameter_groups(model, recipe(language_model=1.0))
    names = {id(p): name for name, p in model.named_parameters()}
    bare = {names[id(p)].split(".")[-1] for g in groups if g["weight_decay"] == 0 for p in g["params"]}
    decayed = {names[id(p)].rpartition("mixer.")[2] for g in groups if g["weight_decay"] == 0.05 for p in g["params"]}
    assert bare == {"A_log", "D", "dt_bias", "bias", "weight"}
    assert decayed == {"in_proj.weight", "out_proj.weight", "conv1d.weight", "language_model.backbone.embedding.weight"}


def test_parts_without_a_rate_are_frozen(model):
    chosen = recipe(projector=1.0)
    set_trainable(model, chosen.trainable)
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {"projector"}
    assert {group["name"] for group in parameter_groups(model, chosen)} == {"projector"}
    set_trainable(model, recipe(vision=1.0).trainable)
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {"vision"}


def test_warm_up_then_half_a_cosine():
    factors = [rate_factor(step, 100, Schedule(warmup_ratio=0.1, min_lr_ratio=0.2)) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.6)
    assert factors[9:] == sorted(factors[9:], reverse=True)
    assert 0.2 < factors[99] < 0.201


def test_a_schedule_without_warm_up_and_of_one_step():
    assert rate_factor(0, 1, Schedule(warmup_ratio=0.0)) == 1.0
    assert rate_factor(0, 1, Schedule(warmup_ratio=0.1)) == 1.0
