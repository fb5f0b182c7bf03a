"""A recurrent language model, with the parameter names of `state-spaces/mamba2-*`.

B batch, T tokens, D model width, V padded vocabulary.
"""

import torch
from torch import Tensor, nn

from ma2mba.model.base_config import BackboneConfig
from ma2mba.model.norm import RMSNorm
from ma2mba.model.registry import BACKBONES


class Backbone(nn.Module):
    def __init__(self, config: BackboneConfig):
        super().__init__()
        layer = BACKBONES.module(config.layer)
        self.embedding = nn.Embedding(config.padded_vocab_size, config.d_model)
        self.layers = nn.ModuleList(layer(config) for _ in range(config.n_layer))
        self.norm_f = RMSNorm(config.d_model, config.norm_eps)


class LanguageModel(nn.Module):
    """Embedding, layers, final norm, and a head, which may be the embedding. The caller runs the layers."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.backbone = Backbone(config)
        self.lm_head = nn.Linear(config.d_model, config.padded_vocab_size, bias=False)
        self._initialise()
        if config.tie_embeddings:
            self.lm_head.weight = self.backbone.embedding.weight

    def logits(self, x_BTD: Tensor) -> Tensor:
        """Apply the final norm and the head to the residual stream; return logits_BTV in the weights' dtype."""
        return self.lm_head(self.backbone.norm_f(x_BTD))

    @torch.no_grad()
    def _initialise(self) -> None:
        """As state-spaces/mamba: embedding N(0, 0.02), and what the layers scale by the depth. A head of its own stays
        as `nn.Linear` makes it."""
        self.backbone.embedding.weight.normal_(std=0.02)
        for layer in self.backbone.layers:
            layer.scale_init(len(self.backbone.layers))  # type: ignore[operator]
