"""Layers as callers of the engine write them: a GRU, a linear recurrence with complex states, a gated linear attention,
and a layer with buffers. Each has another kind of state.
"""

import torch
from torch import Tensor, nn

State = tuple[Tensor, ...]


class GRULayer(nn.Module):
    """The layer of docs/engine.md: PyTorch's own GRU."""

    def __init__(self, width: int):
        super().__init__()
        self.gru = nn.GRU(width, width, batch_first=True)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, last = self.gru(x, state[0])
        return x + y, (last,)

    def initial_state(self, x: Tensor) -> State:
        return (x.new_zeros(1, x.shape[0], x.shape[2]),)


class LRULayer(nn.Module):
    """A linear recurrent unit: a diagonal recurrence with complex states and complex parameters."""

    def __init__(self, width: int):
        super().__init__()
        self.decay, self.angle = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(width))
        self.into = nn.Parameter(torch.randn(width, width, dtype=torch.cfloat) / width**0.5)
        self.out = nn.Parameter(torch.randn(width, width, dtype=torch.cfloat) / width**0.5)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        rate = torch.polar(torch.sigmoid(self.decay), self.angle)
        (hidden,), seen = state, []
        for token in (x.to(self.into.dtype) @ self.into).unbind(1):
            hidden = rate * hidden + token
            seen.append(hidden)
        return x + (torch.stack(seen, 1) @ self.out).real, (hidden,)

    def initial_state(self, x: Tensor) -> State:
        return (x.new_zeros(x.shape[0], x.shape[2], dtype=self.into.dtype),)


class GatedLinearAttention(nn.Module):
    """A matrix of keys and values that each token decays and adds to."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.project = nn.LayerNorm(width), nn.Linear(width, 4 * width)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        query, key, value, gate = self.project(self.norm(x)).chunk(4, -1)
        (memory,), outputs = state, []
        for t in range(x.shape[1]):
            update = key[:, t, :, None] * value[:, t, None]
            memory = memory * torch.sigmoid(gate[:, t, :, None]) + update
            outputs.append((query[:, t, None] @ memory)[:, 0])
        return x + torch.stack(outputs, 1), (memory,)

    def initial_state(self, x: Tensor) -> State:
        return (x.new_zeros(x.shape[0], x.shape[2], x.shape[2]),)


class BufferedLayer(nn.Module):
    """Adds a table of positions, which is a buffer, and a running sum. The position is a state of whole numbers."""

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("table", torch.randn(64, width))
        self.register_buffer("unused", None)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        total, position = state
        sums = total[:, None] + torch.cumsum(self.project(x), 1)
        at = position + torch.arange(x.shape[1], device=x.device)
        return x + torch.tanh(sums + self.table[at % len(self.table)]), (sums[:, -1], position + x.shape[1])

    def initial_state(self, x: Tensor) -> State:
        return x.new_zeros(x.shape[0], x.shape[2]), torch.zeros((), dtype=torch.int64, device=x.device)


OWN = {"gru": GRULayer, "lru": LRULayer, "attention": GatedLinearAttention, "buffers": BufferedLayer}


def in_double(module: nn.Module) -> nn.Module:
    """Convert real tensors of a module to fp64 and complex tensors to complex128, in place."""
    return module._apply(lambda t: t.to(torch.promote_types(t.dtype, torch.double)) if is_wide(t) else t)


def is_wide(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def own_layers(kind: str, count: int, width: int = 8) -> nn.ModuleList:
    return in_double(nn.ModuleList(OWN[kind](width) for _ in range(count)))
