"""Predict the memory and the time of a plan from the cost of a model."""

from dataclasses import dataclass, field

from ma2mba.magc.plan import Plan
from ma2mba.planner.cost import Cost
from ma2mba.planner.peaks import SEQUENCE_AXIS, moments
from ma2mba.planner.schedule import Layout, Workload
from ma2mba.planner.speed import Speed


@dataclass(frozen=True)
class Prediction:
    """The memory and the time of a step.

    device   bytes of device memory by kind of use, at the moment of the peak. host is the same of host memory.
    seconds  of forward and backward.
    moment   the moment of the peak, in words.
    """

    plan: Plan
    device: dict[str, int]
    host: dict[str, int]
    seconds: float
    moment: str = field(compare=False)

    @property
    def device_bytes(self) -> int:
        return sum(self.device.values())

    @property
    def host_bytes(self) -> int:
        return sum(self.host.values())


def predict(
    cost: Cost,
    speed: Speed,
    workload: Workload,
    plan: Plan,
    device_base: dict[str, int] | None = None,
    host_base: dict[str, int] | None = None,
) -> Prediction:
    """Return the peak memory and the time of a step.

    The bases are the bytes that are alive all the time: weights, gradients, optimizer.
    """
    layout = Layout(cost, workload, plan)
    name, parts = max(moments(layout), key=lambda moment: sum(moment[1].values()))
    device = {**(device_base or {}), **{part: round(size) for part, size in parts.items()}}
    stash = cost.stack.state * layout.boundaries if plan.stash == "host" else 0
    host = {**(host_base or {}), SEQUENCE_AXIS: stash}
    return Prediction(plan, device, host, layout.seconds(speed), name)
