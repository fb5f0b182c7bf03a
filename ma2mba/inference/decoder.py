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
        return self._slots.step(ids_B)

    def states(self, row: int) -> list[State]:
        """Return copies of the states of one sequence, one for each layer."""
        return [layer.state(row) for layer in self._slots.layers]


class Slots:
    """Room for the states of a number of sequences, and on a GPU CUDA graphs that advance the first ones of them."""

    @torch.no_grad()
    def __init__(self, model: VideoMa2mba, rows: int, sizes: Sequence[int] = ()):
        """`sizes`: how many rows each CUDA graph advances; by default one graph advances all rows."""
        self._language_model = model.language_model
        self.weights = _versions(model)
        self.layers = [layer.open_step(rows) for layer in model.layers]
        device = model.language_model.lm_head.weight.device
        self._ids_B = torch.zeros(rows, dtype=torch.long, device=device)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        if device.type == "cuda" and all(layer.in_place for layer in self.layers):
            for size in sorted(sizes or [rows], reverse=True):  # the largest first: the others share its memory
                self._graphs[size] = self._capture(device, size)

    @property
    def rows(self) -> int:
        return len(self._ids_B)

    @property
    def device(self) -> torch.device:
        return self._ids_B.device

    def _capture(self, device: torch.device, size: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            self._advance(size)  # compiles the kernels
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self._graphs.values()))[0].pool() if self._graphs else None
        with torch.cuda.graph(graph, pool=pool):
            logits_BV = self._advance(size)
        return graph, logits_BV

    @torch.no_grad()
    def step(self, ids_B: Tensor) -> Tensor:
        """Let the first B rows read token ids_B. Return their logits_BV.

        On a GPU, rows up to the next graph's size read any token. The next call may overwrite the result.
        """
        count = len(ids_B)
        self._ids_B[:count] = ids_B
        if not self._graphs:
            return self._advance(count)
        graph, logits_BV = self._graphs[min(size for size in self._graphs if size >= count)]
        graph.replay()
        return logits_BV[:count]

    def _advance(self, count: int) -> Tensor:
        backbone = self._language_model.backbone
        x_BD = backbone.embedding(self._ids_B[:count])
        x_BD = x_BD.to(torch.promote_types(x_BD.dtype, torch.float32))
        for layer in self.layers:
            x_BD = layer(x_BD)
        return product_of_norm(x_BD, backbone.norm_f.weight, self._language_model.lm_head.weight, backbone.norm_f.eps)


_IDLE: "weakref.WeakKeyDictionary[VideoMa2mba, dict[int, Slots]]" = weakref.WeakKeyDictionary()
"""Slots that no decoder uses, by the number of rows: to capture a graph takes longer than to write a short answer."""


def _take_slots(model: VideoMa2mba, rows: int) -> Slots:
    on_gpu = model.language_model.lm_head.weight.device.type == "cuda"
    rows = 1 << (rows - 1).bit_length() if on_gpu else rows
    idle = _IDLE.get(model, {}).pop(rows, None)
    # Steps hold copies of small weights, and a graph holds addresses.
    return idle if idle and idle.weights and idle.weights == _versions(model) else Slots(model, rows)


def _give_back(model: "weakref.ref[VideoMa2mba]", slots: Slots) -> None:
    alive = model()
    if alive is not None:
        _IDLE.setdefault(alive, {})[slots.rows] = slots


def _versions(model: VideoMa2mba) -> list[tuple[int, int]] | None:
    """Return what changes when a weight does; None for weights made in inference mode, whose changes leave no trace."""
    weights = list(model.language_model.parameters())
    return None if any(p.is_inference() for p in weights) else [(p.data_ptr(), p._version) for p in weights]
