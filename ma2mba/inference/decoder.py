"""Sequences that advance together by one token a call.

B sequences, D model width, V padded vocabulary.
"""

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from ma2mba.model.layer import State
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.ops import product_of_norm


class Decoder:
    """The recurrent states of B sequences, which read one token each in `step`."""

    def __init__(self, model: VideoMa2mba, states: Sequence[list[State]]):
        """Copy the states of B sequences: for each one the states of all layers, as `Session.states` holds them."""
        self.rows = len(states)
        self._slots = _take_slots(model, self.rows)
        weakref.finalize(self, _give_back, weakref.ref(model), self._slots)
        for row, of_layers in enumerate(states):
            for layer, state in zip(self._slots.layers, of_layers, strict=True):
                layer.load(row, state)

    @torch.no_grad()
    def step(self, ids_B: Tensor) -> Tensor:
        """Read token ids_B (int64). Return logits_BV of the next tokens, fp32 or wider, on the model's device.

        Ids beyond the tokenizer's vocabulary are padding. The next call may overwrite the result.
        """
        return self._slots.step(ids_B)[: self.rows]

    def states(self, row: int) -> list[State]:
        """Return copies of the states of one sequence, one for each layer."""
        return [layer.state(row) for layer in self._slots.layers]


class _Slots:
    """Room for the states of a number of sequences, and on a GPU one CUDA graph that advances all of them."""

    @torch.no_grad()
    def __init__(self, model: VideoMa2mba, rows: int):
        self._language_model = model.language_model
        self.weights = _versions(model)
        self.layers = [layer.open_step(rows) for layer in model.layers]
        device = model.language_model.lm_head.weight.device
        self._ids_B = torch.zeros(rows, dtype=torch.long, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type == "cuda" and all(layer.in_place for layer in self.layers):
            self._capture(device)

    def _capture(self, device: torch.device) -> None:
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            self._advance()  # compiles the kernels
        torch.cuda.current_stream(device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits_BV = self._advance()

    def step(self, ids_B: Tensor) -> Tensor:
        self._ids_B[: len(ids_B)] = ids_B
        if self._graph is None:
            return self._advance()
        self._graph.replay()
        return self._logits_BV

    def _advance(self) -> Tensor:
        backbone = self._language_model.backbone
        x_BD = backbone.embedding(self._ids_B)
        x_BD = x_BD.to(torch.promote_types(x_BD.dtype, torch.float32))
        for layer in self.layers:
            x_BD = layer(x_BD)
        return product_of_norm(x_BD, backbone.norm_f.weight, self._language_model.lm_head.weight, backbone.norm_f.eps)


_IDLE: "weakref.WeakKeyDictionary[VideoMa2mba, dict[int, _Slots]]" = weakref.WeakKeyDictionary()
"""Slots that no decoder uses, by the number of rows: to capture a graph takes longer than to write a short answer."""


def _take_slots(model: VideoMa2mba, rows: int) -> _Slots:
    on_gpu = model.language_model.lm_head.weight.device.type == "cuda"
    rows = 1 << (rows - 1).bit_length() if on_gpu else rows
    idle = _IDLE.get(model, {}).pop(rows, None)
    # Steps hold copies of small weights, and a graph holds addresses.
    return idle if idle and idle.weights and idle.weights == _versions(model) else _Slots(model, rows)


def _give_back(model: "weakref.ref[VideoMa2mba]", slots: _Slots) -> None:
    alive = model()
    if alive is not None:
        _IDLE.setdefault(alive, {})[len(slots._ids_B)] = slots


def _versions(model: VideoMa2mba) -> list[tuple[int, int]] | None:
    """Return what changes when a weight does; None for weights made in inference mode, whose changes leave no trace."""
    weights = list(model.language_model.parameters())
    return None if any(p.is_inference() for p in weights) else [(p.data_ptr(), p._version) for p in weights]
