"""Give each component (vision, projector, language model) its base learning rate.

`trainable` in the recipe gives the base rates; `parameter_groups` puts them into AdamW's parameter groups.
`rate_factor` is the schedule. The rates are applied in `Engine.set_rates` (engine.py): `step.train_step` calls it with
the factor before every training step.
"""

import math
from typing import Any

from torch import nn

from ma2mba.training.recipe.schema import COMPONENTS, Recipe, Schedule, Trainable


def set_trainable(model: nn.Module, trainable: Trainable) -> None:
    """Let components with a learning rate receive gradients, and freeze the others."""
    for component in COMPONENTS:
        model.get_submodule(component).requires_grad_(getattr(trainable, component) is not None)


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Return AdamW's parameter groups: one or two for each trained component.

    The first has the component's matrices. The second has no weight decay and holds everything of one dimension:
    biases, norms, A_log, D, dt_bias. Each group has `name` (the component), `params`, `lr` and `weight_decay`.
    """
    groups = []
    for component in recipe.trainable.components:
        parameters = list(model.get_submodule(component).parameters())
        matrices = [p for p in parameters if p.dim() > 1]
        vectors = [p for p in parameters if p.dim() <= 1]
        rate = getattr(recipe.trainable, component)
        for params, decay in ((matrices, recipe.optimizer.weight_decay), (vectors, 0.0)):
            if params:
                groups.append({"name": component, "params": params, "lr": rate, "weight_decay": decay})
    return groups


def rate_factor(step: int, steps: int, schedule: Schedule) -> float:
    """Return the factor of the learning rates in `step`, from 0 to steps - 1: linear warm-up, then half a cosine."""
    warmup = math.ceil(schedule.warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return schedule.min_lr_ratio + (1 - schedule.min_lr_ratio) * (1 + math.cos(math.pi * min(1.0, done))) / 2
