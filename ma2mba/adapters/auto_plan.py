"""A plan for a model that came without one: from one of its layers, the memory that is free, and the length seen."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ma2mba.magc.plan import Plan
from ma2mba.planner.choose import Budget, Planner
from ma2mba.planner.cost import LENGTHS, Cost, measure
from ma2mba.planner.host_memory import Host
from ma2mba.planner.predict import Sequence as Tokens
from ma2mba.planner.speed import Speed, clock, estimate

USABLE = 0.94
"""Of the memory that is free; the rest is lost in the allocator's gaps."""
LOGIT_BYTES = 16
"""A logit in bf16, its fp32 copy, what the loss makes of it, and the gradients of both."""
MOMENTS = 2
"""AdamW's, in the parameters' dtype: they come with the first step, after the first plan."""
GIB = 2**30
logger = logging.getLogger("ma2mba.magc")


@dataclass
class AutoPlan:
    """Chooses a plan at the first call, and again when a longer or larger batch comes: for the most rows and the most
    tokens seen, together."""

    chosen: Plan | None = None
    seen: tuple[int, int] = (0, 0)
    _prices: dict[tuple[object, ...], tuple[Cost, Speed]] = field(default_factory=dict)
    _versions: list[int] = field(default_factory=list)

    def plan(self, layers: Sequence[nn.Module], x: Tensor, parameters: Sequence[nn.Parameter], vocabulary: int) -> Plan:
        """The fastest plan that fits a run of `layers`, all alike, over x (batch, tokens, width) and logits behind it.

        If none fits, that which takes least; the log says so.
        """
        most = max(x.shape[0], self.seen[0]), max(x.shape[1], self.seen[1])
        if self.chosen is None or most != self.seen:
            base = {"logits": LOGIT_BYTES * most[0] * most[1] * vocabulary}
            trained = [p for p in parameters if p.requires_grad]
            base["gradients"] = sum(p.nbytes for p in trained if p.grad is None)
            base["optimizer"] = 0 if self._stepped(trained) else MOMENTS * sum(p.nbytes for p in trained)
            self.chosen, self.seen = self._choose(layers, x, most, base), most
        return self.chosen

    def _stepped(self, trained: Sequence[nn.Parameter]) -> bool:
        """Whether an optimizer has changed parameters since the first plan, and so has its moments."""
        versions = [p._version for p in trained]
        if self.chosen is None:
            self._versions = versions
        return versions != self._versions

    def _choose(self, layers: Sequence[nn.Module], x: Tensor, most: tuple[int, int], base: dict[str, int]) -> Plan:
        planner = self._planner(layers, x, most, base)
        sequence = Tokens(most[1])
        choice = planner.choose(sequence)
        best = choice.best if choice else planner.smallest(sequence)
        logger.log(
            logging.INFO if choice else logging.WARNING,
            "%s %s for %d x %d tokens: %.3g GiB of %.3g GiB that are free",
            best.plan,
            "chosen" if choice else "needs least, but may not fit,",
            *most,
            best.device_bytes / GIB,
            planner.budget.device / GIB,
        )
        return best.plan

    def _planner(self, layers: Sequence[nn.Module], x: Tensor, most: tuple[int, int], base: dict[str, int]) -> Planner:
        """Prices are measured once for a kind of batch; how much is free is asked each time."""
        kind = (x.device, most[0], x.dtype, len(layers), torch.is_autocast_enabled(x.device.type))
        if kind not in self._prices:
            like_x = x.new_zeros(most[0], 1, x.shape[2])
            self._prices[kind] = _measure(layers, like_x, most[1])
        host = Host().free() // torch.cuda.device_count() if x.is_cuda else None
        return Planner(*self._prices[kind], Budget(int(free_bytes(x.device) * USABLE), host, base))


def _measure(layers: Sequence[nn.Module], like_x: Tensor, tokens: int) -> tuple[Cost, Speed]:
    """On a GPU by running a layer there; for a CPU its bytes are counted, and times only rank plans."""
    lengths = [length for length in LENGTHS if length <= 2 * max(tokens, LENGTHS[0])]
    layer = layers[0]
    if like_x.is_cuda:
        cost = measure(layer, like_x, len(layers), lengths=lengths)
        return cost, clock(layer, like_x, cost, lengths, graphs=False)
    cost = measure(copy.deepcopy(layer).to("meta"), like_x.to("meta"), len(layers), lengths=lengths)
    return cost, estimate(cost)


def free_bytes(device: torch.device) -> int:
    """What tensors on a device may still take: of a GPU, or of the host's memory."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return Host().free()
