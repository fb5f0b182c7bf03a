"""The memory and the time of a plan, from the cost of its layers."""

from dataclasses import dataclass, field

from ma2mba.magc.plan import Plan
from ma2mba.planner.cost import Cost
from ma2mba.planner.peaks import SEQUENCE_AXIS, moments
from ma2mba.planner.schedule import Layout, Workload
from ma2mba.planner.speed import Speed


@dataclass(frozen=True)
class Prediction:
    """Bytes by part at the moment of the peak, and the seconds of a step's forward and backward."""

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
    """Peak memory and time. The bases are what lives all the time: weights, gradients, optimizer."""
    layout = Layout(cost, workload, plan)
    name, parts = max(moments(layout), key=lambda moment: sum(moment[1].values()))
    device = {**(device_base or {}), **{part: round(size) for part, size in parts.items()}}
    stash = cost.state * cost.layers * layout.boundaries if plan.stash == "host" else 0
    host = {**(host_base or {}), SEQUENCE_AXIS: stash}
    return Prediction(plan, device, host, layout.seconds(speed), name)
