"""Which parts of the model a stage trains, how fast, and how the learning rate moves."""

import math
from typing import Any

from torch import nn

from ma2mba.training.recipe.schema import PART_NAMES, Recipe, Schedule, Trainable


def set_trainable(model: nn.Module, trainable: Trainable) -> None:
    """Parts with a learning rate get gradients; the others are frozen."""
    for part in PART_NAMES:
        model.get_submodule(part).requires_grad_(getattr(trainable, part) is not None)


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """AdamW's groups, up to two for each trained part: matrices, and without weight decay everything of one dimension
    (biases, norms, A_log, D, dt_bias). Each has `name` (the part), `params`, `lr` and `weight_decay`."""
    groups = []
    for part in PART_NAMES:
        rate = getattr(recipe.trainable, part)
        if rate is None:
            continue
        parameters = list(model.get_submodule(part).parameters())
        matrices = [p for p in parameters if p.dim() > 1]
        vectors = [p for p in parameters if p.dim() <= 1]
        for params, decay in ((matrices, recipe.optimizer.weight_decay), (vectors, 0.0)):
            if params:
                groups.append({"name": part, "params": params, "lr": rate, "weight_decay": decay})
    return groups


def rate_factor(step: int, steps: int, schedule: Schedule) -> float:
    """What the learning rates are multiplied by in step 0 ... steps - 1: linear warm-up, then half a cosine."""
    warmup = math.ceil(schedule.warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return schedule.min_lr_ratio + (1 - schedule.min_lr_ratio) * (1 + math.cos(math.pi * min(1.0, done))) / 2
