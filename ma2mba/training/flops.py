"""Floating-point operations of a training step, as the model needs them: nothing that is computed again counts.

Only matrix products are counted, a multiplication and an addition as two. For the utilisation of a device
(MFU): what the model needs a second over what the device can do.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch

from ma2mba.model.config import BackboneConfig, ModelConfig, VisionConfig
from ma2mba.training.recipe.schema import PART_NAMES

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
"""Part of a GPU's name -> bf16 operations a second, dense, by the manufacturer; the first that matches counts."""


@dataclass(frozen=True)
class ModelFlops:
    """What a model needs where the parts `trained` get gradients; `pictures` False: the encoder's features are read."""

    config: ModelConfig
    trained: Collection[str]
    pictures: bool = True

    def of_step(self, tokens: int, frames: int, targets: int) -> float:
        """Forward and backward of so many tokens (text and visual), frames, and tokens that the loss is taken over."""
        c, visual = self.config, frames * self.config.tokens_per_frame
        seen, projected, spoken = ("vision",), ("vision", "projector"), PART_NAMES
        vision = frames * vision_flops(c.vision) * self._passes("vision", seen)
        vision -= frames * patch_flops(c.vision) * ("vision" in self.trained)  # pixels get no gradient
        width, inner = c.vision.hidden_size, c.language_model.d_model
        first = 2.0 * visual * width * inner * self._passes("projector", seen)
        second = 2.0 * visual * inner * inner * self._passes("projector", projected)
        layers = c.language_model.n_layer * tokens
        matrices = layers * matrix_flops(c.language_model) * self._passes("language_model", spoken)
        scan = layers * scan_flops(c.language_model) * 3
        head = 2.0 * targets * inner * c.language_model.padded_vocab_size * self._passes("language_model", spoken)
        return (vision if self.pictures else 0.0) + first + second + matrices + scan + head

    def _passes(self, part: str, before: Collection[str]) -> int:
        """Forward, gradients of the weights if `part` is trained, and of the inputs if something `before` them is."""
        return 1 + (part in self.trained) + any(name in self.trained for name in before)


def matrix_flops(config: BackboneConfig) -> float:
    """Forward of a layer's two projections, for a token."""
    projected = config.d_inner + config.conv_width + config.heads
    return 2.0 * config.d_model * (projected + config.d_inner)


def scan_flops(config: BackboneConfig) -> float:
    """Forward of a layer's SSD scan, for a token, in blocks of `ssd_block` tokens (arXiv 2405.21060, section 6)."""
    within = config.ssd_block * (config.ngroups * config.d_state + config.d_inner)
    return 2.0 * (within + 2 * config.d_state * config.d_inner)


def vision_flops(config: VisionConfig) -> float:
    """Forward of the vision encoder up to its penultimate layer, for a frame."""
    tokens, width = config.patches_per_side**2 + 1, config.hidden_size
    layer = tokens * (4 * width * width + 2 * width * config.intermediate_size) + 2 * tokens * tokens * width
    return patch_flops(config) + 2.0 * (config.num_hidden_layers - 1) * layer


def patch_flops(config: VisionConfig) -> float:
    """Forward of the patch embedding, for a frame."""
    return 2.0 * config.patches_per_side**2 * 3 * config.patch_size**2 * config.hidden_size


def device_peak(device: torch.device, dtype: torch.dtype) -> float | None:
    """Operations a second that a known GPU can do in bf16; None for others, a CPU, and other dtypes."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS if part in name), None)
