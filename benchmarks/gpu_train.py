"""Run training steps of a language model alone, under DeepSpeed's ZeRO-1 with optimizer states on the device."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks import gpu
from ma2mba.model.backbone import LanguageModel
from ma2mba.training.engine import ds_config, start_processes
from ma2mba.training.recipe.loading import parse_recipe
from ma2mba.training.world import World, load_policy

RECIPE = {
    "stage": "stage2",
    "data": "",
    "run": "",
    "init_from": "",
    "trainable": {"language_model": 1e-5},
    "steps": 1,
    "precision": "bf16",
}
"""Only DeepSpeed's configuration is built from this recipe."""


class _Loss(nn.Module):
    def __init__(self, model: LanguageModel, chunk: int):
        super().__init__()
        self.model = model
        self.streamer = gpu.streamer(model, gpu.fast_plan(model, chunk))

    def forward(self, anchor: Tensor, tokens: int) -> Tensor:
        return gpu.mean_loss(self.streamer, tokens, gpu.initial_states(self.model)) + anchor


def open_training(size: str, chunk: int) -> Callable[[int], float]:
    """Return a function that takes one optimizer step on N random tokens and returns the loss."""
    import deepspeed

    world = World.from_environment()
    start_processes(world)
    model = gpu.language_model(size)
    module = _Loss(model, chunk)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    config = ds_config(parse_recipe(RECIPE | {"global_batch": world.size}), world, load_policy("zero1"))
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)

    def step(tokens: int) -> float:
        anchor = torch.zeros((), device=gpu.DEVICE, requires_grad=True)
        loss = engine(anchor, tokens)
        engine.backward(loss)
        engine.step()
        return loss.item()

    return step
