"""A training step of a language model alone under DeepSpeed's ZeRO-1, optimizer states on the device.

S tokens of the sequence.
"""

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
"""What DeepSpeed's configuration is made of; nothing else of it is used."""


class _Loss(nn.Module):
    def __init__(self, model: LanguageModel, chunk: int):
        super().__init__()
        self.model = model
        self.streamer = gpu.streamer(model, gpu.fast_plan(model, chunk))

    def forward(self, anchor: Tensor, tokens: int) -> Tensor:
        like_x_BTD = torch.empty(1, 0, self.model.lm_head.in_features, device=gpu.DEVICE)
        states = [layer.initial_state(like_x_BTD) for layer in self.model.backbone.layers]  # type: ignore[operator]
        total, _ = self.streamer(gpu.RandomTokens(tokens, self.streamer.plan.chunk_tokens), states)
        return total / tokens + anchor


def open_training(size: str, chunk: int) -> Callable[[int], float]:
    """tokens -> the loss of one step of the optimizer, on that many random tokens."""
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
