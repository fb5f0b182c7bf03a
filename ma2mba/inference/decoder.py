"""Sequences that advance together by one token a call.

B sequences, D model width, V padded vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ma2mba.model.layer import State
from ma2mba.model.video_ma2mba import VideoMa2mba


class Decoder:
    """The recurrent states of B sequences, which read one token each in `step`."""

    def __init__(self, model: VideoMa2mba, states: Sequence[list[State]]):
        """Copy the states of B sequences: for each one the states of all layers, as `Session.states` holds them."""
        self.model, self.rows = model, len(states)
        self._layers = [layer.open_step(self.rows) for layer in model.layers]
        for row, of_layers in enumerate(states):
            for layer, state in zip(self._layers, of_layers, strict=True):
                layer.load(row, state)

    @torch.no_grad()
    def step(self, ids_B: Tensor) -> Tensor:
        """Read token ids_B (int64). Return logits_BV of the next tokens, fp32 or wider, on the model's device.

        Ids beyond the tokenizer's vocabulary are padding. The next call may overwrite the result.
        """
        embedding = self.model.language_model.backbone.embedding
        x_BD = embedding(ids_B.to(embedding.weight.device))
        x_BD = x_BD.to(torch.promote_types(x_BD.dtype, torch.float32))
        for layer in self._layers:
            x_BD = layer(x_BD)
        logits_BV = self.model.logits(x_BD[:, None])[:, 0]
        return logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32))

    def states(self, row: int) -> list[State]:
        """Return copies of the states of one sequence, one for each layer."""
        return [layer.state(row) for layer in self._layers]
