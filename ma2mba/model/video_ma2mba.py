"""Video-Ma2mba: vision encoder, projector, Mamba-2 (paper, section 4). Pure pieces: the caller runs them.

B batch, T tokens (of a chunk), D model width, N frames, C colours, H and W pixels, K tokens of a frame,
M supervised tokens, V padded vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ma2mba.model.backbone import LanguageModel
from ma2mba.model.config import ModelConfig
from ma2mba.model.layer import State
from ma2mba.model.projector import Projector
from ma2mba.model.registry import VISION_ENCODERS
from ma2mba.model.vision import VisionEncoder
from ma2mba.ops import cross_entropy_sum

IGNORE = -100


def chosen(targets_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Where a target stands (int64 places_M in the flattened batch), and those targets (targets_M)."""
    flat = targets_BT.flatten()
    places_M = (flat != IGNORE).nonzero()[:, 0]
    return places_M, flat[places_M]


class VideoMa2mba(nn.Module):
    """Parameters in three groups: `vision`, `projector`, `language_model`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.vision: VisionEncoder = VISION_ENCODERS.module(config.vision.encoder)(config.vision)
        self.projector = Projector(config.vision.width, config.language_model.d_model)
        self.language_model = LanguageModel(config.language_model)

    @property
    def projector_dtype(self) -> torch.dtype:
        return next(self.projector.parameters()).dtype

    @property
    def layers(self) -> nn.ModuleList:
        """Steps `layer(x_BTD, state) -> (x_BTD, state)` with `layer.initial_state(x_BTD)`."""
        return self.language_model.backbone.layers

    def embed(self, ids_BT: Tensor, visual_BT: Tensor, frames: Tensor) -> Tensor:
        """Text and visual tokens in their places, as the residual stream x_BTD (fp32 or wider).

        `visual_BT` is n * K + k where token k of frame n of `frames` stands and -1 where text stands; `ids_BT` counts
        only there. `frames` are pictures, uint8 (N, C, H, W), or what the vision encoder makes of them, floating
        (N, K, vision width); the encoder then is left alone.
        """
        x_BTD = self.language_model.backbone.embedding(ids_BT)
        if len(frames):
            seen_NKV = frames.to(self.projector_dtype) if frames.is_floating_point() else self.vision(frames)
            tokens_ND = self.projector(seen_NKV).flatten(0, 1)
            seen_BTD = F.embedding(visual_BT.clamp(min=0), tokens_ND).to(x_BTD.dtype)
            x_BTD = torch.where((visual_BT >= 0)[..., None], seen_BTD, x_BTD)
        return x_BTD.to(torch.promote_types(x_BTD.dtype, torch.float32))

    def logits(self, x_BTD: Tensor) -> Tensor:
        """Logits of the next token, logits_BTV in the weights' dtype; ids beyond the vocabulary are padding."""
        return self.language_model.logits(x_BTD)

    def loss_sum(self, x_BTD: Tensor, targets_BT: Tensor) -> Tensor:
        """Sum of the cross-entropies where a target stands (elsewhere -100), fp32 or wider. Logits only there."""
        return self.loss_at(x_BTD, *chosen(targets_BT))

    def loss_at(self, x_BTD: Tensor, places_M: Tensor, targets_M: Tensor) -> Tensor:
        """`loss_sum` for targets that `chosen` has picked: on a GPU nobody has to wait for their number."""
        x_MD = self.language_model.backbone.norm_f(x_BTD.flatten(0, 1)[places_M])
        return cross_entropy_sum(x_MD, self.language_model.lm_head.weight, targets_M)

    def initial_states(self, x_BTD: Tensor) -> list[State]:
        return [layer.initial_state(x_BTD) for layer in self.layers]  # type: ignore[operator]

    def run(self, x_BTD: Tensor, states: Sequence[State]) -> tuple[Tensor, list[State]]:
        """All layers, plainly: the residual stream after the last and the states after the last token."""
        after = []
        for layer, state in zip(self.layers, states, strict=True):
            x_BTD, state = layer(x_BTD, state)
            after.append(state)
        return x_BTD, after
