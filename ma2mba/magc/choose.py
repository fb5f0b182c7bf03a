"""Choose the fastest plan that fits, say why, and what would fit when none does. Pure arithmetic on a measured cost."""

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field, replace
from math import ceil, inf

from ma2mba.magc.cost import Cost
from ma2mba.magc.plan import Plan
from ma2mba.magc.predict import Prediction, Sequence, predict
from ma2mba.magc.speed import Speed

SHORTEST_CHUNK, LONGEST_CHUNK = 256, 65536
"""A longer chunk is no faster (launches are long hidden) and nears the kernels' 32-bit offsets."""
AS_FAST = 1.01
"""Of plans whose times differ by less, those that leave the host alone, and then the smaller: times are estimates."""


@dataclass(frozen=True)
class Budget:
    """Bytes that a step may take on the device and in host memory (None: keep nothing there), and what of them is taken
    all the time, by part: weights, gradients, optimizer."""

    device: int
    host: int | None = None
    device_base: dict[str, int] = field(default_factory=dict)
    host_base: dict[str, int] = field(default_factory=dict)

    def holds(self, prediction: Prediction) -> bool:
        return prediction.device_bytes <= self.device and prediction.host_bytes <= (self.host or inf)


@dataclass(frozen=True)
class Choice:
    """The chosen plan and the next best, and the reasons, one sentence each."""

    best: Prediction
    runner_up: Prediction | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Planner:
    """A model on a machine."""

    cost: Cost
    speed: Speed
    budget: Budget

    def predict(self, sequence: Sequence, plan: Plan) -> Prediction:
        return predict(self.cost, self.speed, sequence, plan, self.budget.device_base, self.budget.host_base)

    def choose(self, sequence: Sequence) -> Choice | None:
        """The fastest plan that fits and the next; None when nothing fits."""
        every = [self.predict(sequence, plan) for plan in candidates(self.cost, sequence, self.budget.host is not None)]
        fitting = [prediction for prediction in every if self.budget.holds(prediction)]
        if not fitting:
            return None
        best = _best(fitting)
        others = [p for p in fitting if not _alike(p.plan, best.plan)]
        return Choice(best, _best(others) if others else None, tuple(self._reasons(sequence, best, every)))

    def smallest(self, sequence: Sequence) -> Prediction:
        """The plan that needs the least device memory, within the host's."""
        plans = candidates(self.cost, sequence, self.budget.host is not None)
        every = [self.predict(sequence, plan) for plan in plans]
        within = [p for p in every if p.host_bytes <= (self.budget.host or inf)]
        return min(within or every, key=lambda p: p.device_bytes)

    def longest(self, sequence: Sequence) -> tuple[int, Plan] | None:
        """The most tokens that fit with any plan: beyond a few chunks, memory is a straight line in the tokens."""
        far = replace(sequence, tokens=8 * LONGEST_CHUNK)
        plans = candidates(self.cost, far, self.budget.host is not None)
        reach = [(self._reach(far, plan), plan) for plan in plans]
        tokens, plan = max(reach, key=lambda pair: pair[0])
        return (tokens, plan) if tokens > 0 else None

    def _reach(self, far: Sequence, plan: Plan) -> int:
        """The most tokens that fit with one plan; 0 unless at least 3 chunks do."""
        near, farther = self.predict(far, plan), self.predict(replace(far, tokens=2 * far.tokens), plan)
        chunk = far.chunk(plan)
        limits = [(near.device_bytes, farther.device_bytes, self.budget.device)]
        if self.budget.host is not None:
            limits.append((near.host_bytes, farther.host_bytes, self.budget.host))
        most = inf
        for low, high, limit in limits:
            if high > low:
                most = min(most, far.tokens + (limit - low) * far.tokens / (high - low))
            elif low > limit:
                return 0
        tokens = int(min(most, 2**40)) // chunk * chunk
        while tokens >= 3 * chunk and not self.budget.holds(self.predict(replace(far, tokens=tokens), plan)):
            tokens -= chunk
        return tokens if tokens >= 3 * chunk else 0

    def _reasons(self, sequence: Sequence, best: Prediction, every: Iterable[Prediction]) -> Iterable[str]:
        every = list(every)
        plan = best.plan
        changes: list[tuple[str, Callable[[Plan], bool]]] = [
            ("layer" if plan.nesting == "sequence" else "sequence", lambda p: p.nesting != plan.nesting),
            ("longer chunks", lambda p: p.nesting == plan.nesting and p.chunk_tokens > plan.chunk_tokens),
            ("larger groups", lambda p: _only(p, plan, "group_layers") and p.group_layers > plan.group_layers),
            ("smaller groups", lambda p: _only(p, plan, "group_layers") and p.group_layers < plan.group_layers),
            ("states on the device", lambda p: _only(p, plan, "stash") and p.stash == "device"),
            ("states on the host", lambda p: _only(p, plan, "stash") and p.stash == "host"),
        ]
        for what, changed in changes:
            others = [p for p in every if p.plan != plan and changed(p.plan)]
            if others:
                name = f"{what} nesting" if what in ("layer", "sequence") else what
                yield f"{name}: {self._against(best, others)}"

    def _against(self, best: Prediction, others: Many[Prediction]) -> str:
        fitting = [p for p in others if self.budget.holds(p)]
        if not fitting:
            least = min(others, key=lambda p: p.device_bytes)
            if least.device_bytes > self.budget.device:
                return f"would need {_gib(least.device_bytes)} of device memory at least"
            return f"would need {_gib(least.host_bytes)} of host memory"
        other = _best(fitting)
        slower = other.seconds / best.seconds - 1
        if abs(slower) < AS_FAST - 1:
            return f"as fast, {_gib(other.device_bytes)} instead of {_gib(best.device_bytes)}"
        return f"{slower:.0%} slower with {_gib(other.device_bytes)}"


def candidates(cost: Cost, sequence: Sequence, host: bool) -> list[Plan]:
    """Every nesting, chunks of powers of two, every distinct number of groups, both places for the states."""
    groups = sorted({ceil(cost.layers / count) for count in range(1, cost.layers + 1)})
    return [
        Plan(nesting, chunk, group, stash)
        for nesting in ("sequence", "layer")
        for chunk in chunk_lengths(sequence.tokens)
        for group in groups
        for stash in (("device", "host") if host else ("device",))
    ]


def chunk_lengths(tokens: int) -> list[int]:
    """Powers of two up to the first that holds the whole sequence."""
    lengths = [SHORTEST_CHUNK]
    while lengths[-1] < min(tokens, LONGEST_CHUNK):
        lengths.append(2 * lengths[-1])
    return lengths


def _best(predictions: Many[Prediction]) -> Prediction:
    fastest = min(p.seconds for p in predictions)
    return min(
        (p for p in predictions if p.seconds <= AS_FAST * fastest),
        key=lambda p: (p.plan.stash == "host", p.device_bytes, p.host_bytes),
    )


def _alike(one: Plan, other: Plan) -> bool:
    """Plans that differ in nothing but the size of their groups."""
    return _only(one, other, "group_layers")


def _only(one: Plan, other: Plan, name: str) -> bool:
    return replace(one, **{name: getattr(other, name)}) == other


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
