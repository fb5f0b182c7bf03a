"""All generators of a process resume where they were."""

import random

import numpy as np
import torch

from ma2mba.training.checkpoint.rng import RandomState, seed

CPU = torch.device("cpu")


def draw():
    return [torch.rand(2).tolist(), np.random.standard_normal(3).tolist(), random.random(), random.gauss(0, 1)]


def test_a_state_survives_json_and_gives_the_same_numbers():
    seed(1, 2)
    draw()  # an odd number of Gaussian draws: one is held back
    state = RandomState.capture(CPU)
    expected = [draw(), draw()]
    seed(3)
    RandomState.model_validate_json(state.model_dump_json()).restore(CPU)
    assert [draw(), draw()] == expected


def test_ranks_and_steps_draw_different_numbers():
    drawn = []
    for numbers in ((0, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0)):
        seed(*numbers)
        drawn.append(draw())
    for values in zip(*drawn, strict=True):
        assert len({str(value) for value in values}) == 4
