"""Video-Ma2mba: vision encoder, projector, recurrent language model (paper, section 4). The caller runs the pieces.

B batch, T tokens (of a chunk), D model width, N frames, H and W pixels, K tokens of a frame, M supervised tokens,
V padded vocabulary.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ma2mba.model.backbone import LanguageModel
from ma2mba.model.config import ModelConfig
from ma2mba.model.encoded import IGNORE
from ma2mba.model.layer import RecurrentLayer, State
from ma2mba.model.projector import Projector
from ma2mba.model.registry import VISION_ENCODERS
from ma2mba.model.vision import VisionEncoder
from ma2mba.ops import cross_entropy_sum


def supervised(targets_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Return the places of the supervised tokens (int64 places_M in the flattened batch), and their targets_M."""
    flat = targets_BT.flatten()
    places_M = (flat != IGNORE).nonzero()[:, 0]
    return places_M, flat[places_M]


class VideoMa2mba(nn.Module):
    """Three components: `vision`, `projector`, `language_model`."""

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
    def layers(self) -> list[RecurrentLayer]:
        return cast(list[RecurrentLayer], list(self.language_model.backbone.layers))

    def embed(self, ids_BT: Tensor, visual_BT: Tensor, frames: Tensor) -> Tensor:
        """Return text and visual tokens in their places, as the residual stream x_BTD in fp32 or wider.

        `visual_BT` is n * K + k at token k of frame n of `frames`, and -1 at text; `ids_BT` is read only at text.
        `frames` are either pictures, uint8 (N, 3, H, W), or the outputs of the vision encoder, floating point
        (N, K, vision width); the encoder does not run then.
        """
        x_BTD = self.language_model.backbone.embedding(ids_BT)
        if len(frames):
            seen_NKV = frames.to(self.projector_dtype) if frames.is_floating_point() else self.vision(frames)
            tokens_ND = self.projector(seen_NKV).flatten(0, 1)
            seen_BTD = F.embedding(visual_BT.clamp(min=0), tokens_ND).to(x_BTD.dtype)
            x_BTD = torch.where((visual_BT >= 0)[..., None], seen_BTD, x_BTD)
        return x_BTD.to(torch.promote_types(x_BTD.dtype, torch.float32))

    def logits(self, x_BTD: Tensor) -> Tensor:
        """Return the logits_BTV of the next token in the weights' dtype. Ids beyond the vocabulary are padding."""
        return self.language_model.logits(x_BTD)

    def loss_sum(self, x_BTD: Tensor, targets_BT: Tensor) -> Tensor:
        """Return the sum of the cross-entropies of the supervised tokens, in fp32 or wider.

        A target is IGNORE where a token is not supervised. Logits are computed for supervised tokens only.
        """
        return self.loss_at(x_BTD, *supervised(targets_BT))

    def loss_at(self, x_BTD: Tensor, places_M: Tensor, targets_M: Tensor) -> Tensor:
        """`loss_sum` with the result of `supervised`.

        If the caller computed it on the CPU, the host need not wait for the GPU to count the supervised tokens.
        """
        x_MD = self.language_model.backbone.norm_f(x_BTD.flatten(0, 1)[places_M])
        return cross_entropy_sum(x_MD, self.language_model.lm_head.weight, targets_M)

    def initial_states(self, x_BTD: Tensor) -> list[State]:
        return [layer.initial_state(x_BTD) for layer in self.layers]

    def run(self, x_BTD: Tensor, states: Sequence[State]) -> tuple[Tensor, list[State]]:
        """Run all layers without checkpointing. Return the residual stream, and the states after the last token."""
        after = []
        for layer, state in zip(self.layers, states, strict=True):
            x_BTD, state = layer(x_BTD, state)
            after.append(state)
        return x_BTD, after
