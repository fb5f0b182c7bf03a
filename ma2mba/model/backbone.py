"""The Mamba-2 language model, with the parameter names of `state-spaces/mamba2-*`.

B batch, T tokens, D model width, V padded vocabulary.
"""

import math

import torch
from torch import Tensor, nn

from ma2mba.model.config import BackboneConfig
from ma2mba.model.mamba2 import Mamba2Layer, RMSNorm


class Mamba2Backbone(nn.Module):
    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.embedding = nn.Embedding(config.padded_vocab_size, config.d_model)
        self.layers = nn.ModuleList(Mamba2Layer(config) for _ in range(config.n_layer))
        self.norm_f = RMSNorm(config.d_model, config.norm_eps)


class Mamba2LanguageModel(nn.Module):
    """Embedding, layers, final norm and a head tied to the embedding. How the layers run is the caller's choice."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.backbone = Mamba2Backbone(config)
        self.lm_head = nn.Linear(config.d_model, config.padded_vocab_size, bias=False)
        self._initialise(config)
        self.lm_head.weight = self.backbone.embedding.weight

    def logits(self, x_BTD: Tensor) -> Tensor:
        """Final norm and head: the residual stream -> logits_BTV in the weights' dtype."""
        return self.lm_head(self.backbone.norm_f(x_BTD))

    @torch.no_grad()
    def _initialise(self, config: BackboneConfig) -> None:
        """As state-spaces/mamba: embedding N(0, 0.02), output projections over the square root of the depth."""
        self.backbone.embedding.weight.normal_(std=0.02)
        for layer in self.backbone.layers:
            assert isinstance(layer, Mamba2Layer)
            layer.mixer.out_proj.weight.div_(math.sqrt(config.n_layer))
