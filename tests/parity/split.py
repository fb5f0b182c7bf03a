"""The work of ranks on one machine that hold slices of one sequence. Run by test_sequence_parallel.py."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ma2mba.magc import Plan, Streamer
from ma2mba.ops import LayerShape, LayerWeights, mamba2_layer
from ma2mba.ops.selftest import Sizes, layer_inputs, layer_outcome
from tests.parity.recurrent_layers import mamba_layers

WIDTH = 16
Slices = Sequence[Sequence[int]]
"""Tokens of every rank in every chunk."""
Outcome = tuple[dict[str, Tensor], dict[str, Tensor]]
"""By name: tensors of which each rank has a share, and tensors that are the same on every rank."""
Case = Callable[[dist.ProcessGroup | None], Outcome]


class FrontAndHead(nn.Module):
    """An embedding with one row for each token, so that its gradient is the gradient of x, and a loss of each token."""

    def __init__(self, tokens: int):
        super().__init__()
        self.embedding = nn.Embedding(tokens, WIDTH)
        self.weight = nn.Parameter(torch.randn(tokens, WIDTH))

    def front(self, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        return self.embedding(ids_BT), ids_BT

    def head(self, x_BTD: Tensor, ids_BT: Tensor) -> tuple[Tensor]:
        return ((x_BTD.sin() * self.weight[ids_BT]).sum(),)


def layers_outcome(slices: Slices, batch: int, plan: Plan, group: dist.ProcessGroup | None) -> Outcome:
    """Stream layers over this rank's slices, or over all tokens without a group. Return loss, states and gradients."""
    tokens = sum(map(sum, slices))
    torch.manual_seed(tokens + batch)
    layers, ends = mamba_layers(2, WIDTH), FrontAndHead(batch * tokens).double()
    zeros = [layer.initial_state(torch.empty(batch, 0)) for layer in layers]
    states = [tuple(torch.randn_like(t).requires_grad_() for t in state) for state in zeros]
    seeds = [torch.randn_like(t) for state in zeros for t in state]
    steps = [layer.split(group) for layer in layers] if group else layers
    streamer = Streamer(ends.front, steps, ends.head, [ends], plan)
    loss, after = streamer([(ids_BT,) for ids_BT in cut(slices, batch, group)], states)
    flat_after = [t for state in after for t in state]
    handed_back = sum((t * seed).sum() for t, seed in zip(flat_after, seeds, strict=True))
    (loss + handed_back).backward()
    parameters = [*ends.named_parameters(), *layers.named_parameters()]
    shares = {"loss": loss.detach()} | {f"gradient of {name}": p.grad for name, p in parameters}
    whole = {f"state {i}": t.detach() for i, t in enumerate(flat_after)}
    gradients = [t.grad for state in states for t in state]
    return shares, whole | {f"gradient of state {i}": gradient for i, gradient in enumerate(gradients)}


def cut(slices: Slices, batch: int, group: dist.ProcessGroup | None) -> list[Tensor]:
    """Return the ids of this rank's slice of every chunk, or of whole chunks without a group."""
    ids_BS = torch.arange(batch * sum(map(sum, slices))).view(batch, -1)
    chunks = ids_BS.split([sum(lengths) for lengths in slices], dim=1)
    if group is None:
        return list(chunks)
    return [ids.split(list(lengths), dim=1)[dist.get_rank(group)] for ids, lengths in zip(chunks, slices, strict=True)]


def bf16_outcome(lengths: Sequence[int], batch: int, group: dist.ProcessGroup | None) -> Outcome:
    """Run one bf16 layer, on a GPU if there is one, over this rank's slice."""

    def run(
        x_BTD: Tensor, conv: Tensor, ssm: Tensor, weights: LayerWeights, shape: LayerShape
    ) -> tuple[Tensor, Tensor, Tensor]:
        if group is None:
            return mamba2_layer(x_BTD, conv, ssm, weights, shape)
        rank = dist.get_rank(group)
        slices = [x if r == rank else x.detach() * 0 for r, x in enumerate(x_BTD.split(list(lengths), dim=1))]
        slices[rank], conv, ssm = mamba2_layer(slices[rank], conv, ssm, weights, shape, group=group)
        return torch.cat(slices, dim=1), conv, ssm

    sizes, device = Sizes(), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    given = [t.to(device) for t in layer_inputs(sizes, sum(lengths), batch, torch.bfloat16)]
    tensors = layer_outcome(run, given, sizes, torch.bfloat16)
    named = {f"{i}": tensor.detach().double().cpu() for i, tensor in enumerate(tensors)}
    whole = {name: named.pop(name) for name in ("1", "2", "4", "5")}  # the states and their gradients
    return named, whole


def work(rank: int, ranks: int, folder: Path, cases: Sequence[Case]) -> None:
    """Compute all cases on one rank, and write the outcomes to `folder`."""
    store = dist.FileStore(str(folder / "store"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=60))
    torch.save([case(dist.group.WORLD) for case in cases], folder / f"{rank}.pt")
    dist.destroy_process_group()
