"""What a run would read, plan and write: everything that is known before weights are loaded."""

from dataclasses import dataclass

import torch

from ma2mba.model.config import ModelConfig
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.training.checkpoint.folder import Start
from ma2mba.training.checkpoint.resume import find_start
from ma2mba.training.fit.fitting import FittedPlan, fit_run
from ma2mba.training.job import Data, check_world, choose_source, open_data
from ma2mba.training.model_source import ModelSource
from ma2mba.training.recipe.schema import Recipe
from ma2mba.training.world import World, ZeroPolicy


@dataclass(frozen=True)
class Preview:
    """A run before its start. `parameters`: the number of the model's parameters, by component."""

    world: World
    policy: ZeroPolicy
    start: Start | None
    source: ModelSource
    config: ModelConfig
    parameters: dict[str, int]
    data: Data
    fitted_plan: FittedPlan

    @property
    def saves(self) -> list[int]:
        """The first five steps after which the run saves a checkpoint, and the last: a run may have billions."""
        first, last, every = (
            self.start.state.step if self.start else 0,
            self.data.steps,
            self.data.recipe.checkpoint.every,
        )
        regular = range(first - first % every + every, last + 1, every)
        return sorted({*regular[:5], *regular[-1:], last} - {first})


def preview(recipe: Recipe, world: World) -> Preview:
    """Return what `train` would do on `world`. Read no weights and write nothing. Raise UserError as `train` would."""
    world, policy = check_world(recipe, world)
    start = find_start(recipe)
    source = choose_source(recipe, start)
    config = source.read_config()
    data = open_data(recipe, world, source, config, start)
    plan = fit_run(data.recipe, world, policy, config, data.dataset)
    return Preview(world, policy, start, source, config, _parameters(config), data, plan)


def _parameters(config: ModelConfig) -> dict[str, int]:
    with torch.device("meta"):
        model = VideoMa2mba(config)
    return {name: sum(p.numel() for p in component.parameters()) for name, component in model.named_children()}
