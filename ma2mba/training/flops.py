"""Count the floating-point operations of a training step. Recomputation does not count.

Only matrix products count; a multiply-add is two operations. Model FLOPs utilisation (MFU) is the number of operations
per second divided by the peak of the device.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import torch

from ma2mba.model.config import ModelConfig
from ma2mba.model.layer import LayerFlops
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.model.vision import VisionFlops
from ma2mba.training.recipe.schema import COMPONENTS

PEAKS = (
    ("B200", 2250e12),
    ("GH200", 989e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H800", 989e12),
    ("A100", 312e12),
    ("A800", 312e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("RTX 4090", 165e12),
    ("A10", 125e12),
)
"""Substring of a GPU's name -> the manufacturer's dense bf16 operations per second. The first match counts."""


@dataclass(frozen=True)
class ModelFlops:
    """The operations of a model, of which the components `trained` are trained.

    With `pictures` False, the model reads stored features, and the vision encoder does not run.
    """

    config: ModelConfig
    trained: Collection[str]
    pictures: bool = True

    def of_step(self, tokens: int, frames: int, targets: int) -> float:
        """Return the operations of forward and backward for a number of tokens, frames and supervised tokens.

        `tokens` counts text and visual tokens, `targets` the supervised tokens.
        """
        c, visual = self.config, frames * self.config.tokens_per_frame
        seen, projected, spoken = ("vision",), ("vision", "projector"), COMPONENTS
        layer_flops, vision_flops = self._forward
        vision = frames * (vision_flops.pixels + vision_flops.rest) * self._passes("vision", seen)
        vision -= frames * vision_flops.pixels * ("vision" in self.trained)  # pixels get no gradient
        width, inner = c.vision.width, c.language_model.d_model
        first = 2.0 * visual * width * inner * self._passes("projector", seen)
        second = 2.0 * visual * inner * inner * self._passes("projector", projected)
        matrices = tokens * layer_flops.matrices * self._passes("language_model", spoken)
        scan = tokens * layer_flops.scan * 3
        head = 2.0 * targets * inner * c.language_model.padded_vocab_size * self._passes("language_model", spoken)
        return (vision if self.pictures else 0.0) + first + second + matrices + scan + head

    @cached_property
    def _forward(self) -> tuple[LayerFlops, VisionFlops]:
        """The operations of forward: of all layers for one token, and of the encoder for one frame."""
        with torch.device("meta"):
            model = VideoMa2mba(self.config)  # anew: ZeRO 3 leaves the trained model's weights without a shape
        layers = [layer.flops() for layer in model.layers]
        return LayerFlops(*(sum(flops) for flops in zip(*layers, strict=True))), model.vision.flops()

    def _passes(self, component: str, before: Collection[str]) -> int:
        """Return how often a component's products are computed: once in forward, and once for each gradient.

        The weights get a gradient if `component` is trained. Its inputs get one if a component in `before` is trained.
        """
        return 1 + (component in self.trained) + any(name in self.trained for name in before)


def device_peak(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the bf16 operations per second of a known GPU. Return None for other GPUs, a CPU, and other dtypes."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAKS if known in name), None)
