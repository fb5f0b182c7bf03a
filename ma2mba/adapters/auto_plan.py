"""Choose a plan for a model that was attached without one, from its layers, the free memory and the batches so far."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ma2mba.magc.plan import Plan
from ma2mba.planner.choose import Budget, Planner
from ma2mba.planner.cost import Cost
from ma2mba.planner.measure import LENGTHS, first_alike, measure
from ma2mba.planner.memory import GIB, USABLE, Host
from ma2mba.planner.schedule import Workload
from ma2mba.planner.speed import Speed, clock, estimate

LOGIT_BYTES = 16
"""Bytes for each logit: bf16, its fp32 copy, the tensors of the loss, and the gradients of both."""
MOMENTS = 2
"""Moments of AdamW, in the dtype of the parameters. The optimizer creates them in its first step."""
logger = logging.getLogger("ma2mba.magc")


@dataclass
class AutoPlan:
    """Chooses a plan in the first call, and again when a batch has more rows or more tokens than any before.

    chosen  The current plan.
    most    (rows, tokens): the most rows and the most tokens of all batches, which the plan must hold together.
    """

    chosen: Plan | None = None
    most: tuple[int, int] = (0, 0)
    _prices: dict[tuple[object, ...], tuple[Cost, Speed]] = field(default_factory=dict)
    _first_versions: list[int] = field(default_factory=list)

    def plan(self, layers: Sequence[nn.Module], x: Tensor, parameters: Sequence[nn.Parameter], vocabulary: int) -> Plan:
        """Return the fastest plan that fits; if none fits, the plan that needs the least memory, with a warning.

        layers      The model's layers.
        x           (batch, tokens, width): the input of the layers.
        parameters  The model's parameters; gradients and moments of the trainable ones need memory too.
        vocabulary  Logits per token; the logits of the whole batch need memory too.
        """
        most = max(x.shape[0], self.most[0]), max(x.shape[1], self.most[1])
        if self.chosen is None or most != self.most:
            base = self._base_bytes([p for p in parameters if p.requires_grad], most[0] * most[1] * vocabulary)
            self.chosen, self.most = self._choose(self._planner(layers, x, most, base), most), most
        return self.chosen

    def _base_bytes(self, trained: Sequence[nn.Parameter], logits: int) -> dict[str, int]:
        """Return the bytes that a step will allocate besides the layers' own, for each purpose."""
        versions = [p._version for p in trained]
        if self.chosen is None:
            self._first_versions = versions
        # An optimizer that has changed a parameter since the first plan has created its moments already.
        moments = 0 if versions != self._first_versions else MOMENTS
        return {
            "logits": LOGIT_BYTES * logits,
            "gradients": sum(p.nbytes for p in trained if p.grad is None),
            "optimizer": moments * sum(p.nbytes for p in trained),
        }

    def _planner(self, layers: Sequence[nn.Module], x: Tensor, most: tuple[int, int], base: dict[str, int]) -> Planner:
        """Return a planner. Layers are priced once for each kind of batch; free memory is read each time."""
        kind = (x.device, most[0], x.dtype, len(layers), torch.is_autocast_enabled(x.device.type))
        if kind not in self._prices:
            like_x = x.new_zeros(most[0], 1, x.shape[2])
            self._prices[kind] = _measure(layers, like_x, most[1])
        host = Host().free() // torch.cuda.device_count() if x.is_cuda else None
        return Planner(*self._prices[kind], Budget(int(free_bytes(x.device) * USABLE), host, base))

    def _choose(self, planner: Planner, most: tuple[int, int]) -> Plan:
        """Return the planner's choice for `most` (rows, tokens) and log it."""
        workload = Workload(most[1])
        choice = planner.choose(workload)
        best = choice.best if choice else planner.smallest(workload)
        logger.log(
            logging.INFO if choice else logging.WARNING,
            "%s %s for %d x %d tokens: %.3g GiB of %.3g GiB of free memory",
            best.plan,
            "chosen" if choice else "needs the least memory, but may not fit,",
            *most,
            best.device_bytes / GIB,
            planner.budget.device / GIB,
        )
        return best.plan


def _measure(layers: Sequence[nn.Module], like_x: Tensor, tokens: int) -> tuple[Cost, Speed]:
    """Return the price and speed of the layers: measured on a GPU; for a CPU counted on the meta device.

    On a CPU the times are an H200's: they only rank plans.
    """
    lengths = [length for length in LENGTHS if length <= 2 * max(tokens, LENGTHS[0])]
    if like_x.is_cuda:
        cost = measure(layers, like_x, lengths=lengths)
        return cost, clock(layers, like_x, cost, lengths, graphs=False)
    kinds = first_alike(layers)
    on_meta = {layer: copy.deepcopy(layer).to("meta") for layer in dict.fromkeys(kinds)}
    cost = measure([on_meta[layer] for layer in kinds], like_x.to("meta"), lengths=lengths)
    return cost, estimate(cost)


def free_bytes(device: torch.device) -> int:
    """Return the bytes that new tensors can take: on a GPU, or in the memory of the host for a CPU."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return Host().free()
