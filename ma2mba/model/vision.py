"""What a vision encoder of your own must have: the class `VisionEncoder` (docs/extending.md has an example).

N frames, H and W pixels, K tokens of a frame, V vision width.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple, Self

import torch
import xxhash
from torch import Tensor, nn

from ma2mba.errors import UserError
from ma2mba.model.base_config import VisionConfig


class VisionFlops(NamedTuple):
    """Operations of an encoder's forward for one frame: on the pixels, which get no gradient, and on the rest."""

    pixels: float
    rest: float


class VisionEncoder(nn.Module, ABC):
    """Frames -> visual tokens. The class is built with the model's `VisionConfig`."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, frames_N3HW: Tensor) -> Tensor:
        """uint8 (frames, 3, image_size, image_size) -> visual tokens (frames, tokens_per_frame, width)."""

    @abstractmethod
    def flops(self) -> VisionFlops:
        """Count the matrix products of forward for one frame; a multiplication and an addition are two operations."""

    @classmethod
    def load(cls, source: str) -> Self:
        """Return an encoder with published weights; `source` is what `init_from.vision` gives. Raises UserError."""
        raise UserError(f"{source}: {cls.__name__} does not load published weights. Start from a model folder")


def fingerprint(encoder: VisionEncoder) -> str:
    """Return a hash of the configuration and the weights. Weights are rounded to bf16, as a run in bf16 rounds them."""
    digest = xxhash.xxh3_128(encoder.config.model_dump_json().encode())
    for name, weight in sorted(encoder.state_dict().items()):
        bits = weight.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16)
        digest.update(name.encode())
        digest.update(bits.numpy())
    return digest.hexdigest()
