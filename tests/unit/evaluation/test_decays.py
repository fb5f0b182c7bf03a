"""The half-lives that examples/needles/decays.py measures are those with which the states decay."""

import json
import math
import random
import sys

import pytest
import torch

from examples.needles import decays
from ma2mba.inference.chat import VideoChat
from ma2mba.model.mamba2 import Mamba2Layer
from ma2mba.video.synthetic.movie import plan_movie, write_movie

K = 4


def test_the_state_decays_by_what_is_measured(model):
    layer = model.layers[0]
    assert isinstance(layer, Mamba2Layer)
    x_BTD = torch.randn(1, 20, 32)
    conv, ssm = layer.initial_state(x_BTD)
    with torch.no_grad():
        _, (_, with_nothing) = layer(x_BTD, (conv, ssm))
        _, (_, with_ones) = layer(x_BTD, (conv, ssm + 1))
        left_H = (with_ones - with_nothing)[0, :, 0, 0]
        torch.testing.assert_close(left_H, torch.exp(-decays.decays(layer, x_BTD).sum(0)))


def test_the_half_life_of_a_head_with_a_known_decay(model, tokenizer, tmp_path):
    write_movie(plan_movie("a", 12, None, 2, random.Random(0)), tmp_path / "a.mp4")
    mixer = model.layers[1].mixer
    kept = mixer.in_proj.weight.detach().clone(), mixer.A_log.detach().clone(), mixer.dt_bias.detach().clone()
    heads = len(mixer.D)
    try:
        with torch.no_grad():
            mixer.in_proj.weight[-heads:] = 0
            mixer.dt_bias.fill_(math.log(math.expm1(0.01)))  # softplus of it is 0.01
            mixer.A_log.copy_(torch.arange(1.0, heads + 1).log())
        found = decays.half_lives(VideoChat(model, tokenizer), tmp_path / "a.mp4")
    finally:
        with torch.no_grad():
            for parameter, value in zip((mixer.in_proj.weight, mixer.A_log, mixer.dt_bias), kept, strict=True):
                parameter.copy_(value)
    assert found.shape == (3, heads)
    assert found[1].tolist() == pytest.approx([math.log(2) / 0.01 / n / K for n in range(1, heads + 1)], rel=1e-3)


def test_it_draws_several_models(model_folder, tmp_path, monkeypatch):
    command = ["decays.py", str(model_folder), str(model_folder) + "/", "--seconds", "8", "--out", str(tmp_path / "d")]
    monkeypatch.setattr(sys, "argv", command)
    assert decays.main() == 0
    found = json.loads((tmp_path / "d.json").read_text())["half_life_seconds"]
    assert [len(layers) for layers in found.values()] == [3]
    assert (tmp_path / "d.png").read_bytes().startswith(b"\x89PNG")
