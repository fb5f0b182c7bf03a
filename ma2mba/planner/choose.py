"""Choose the fastest plan that fits, say why, and what would fit when none does. Pure arithmetic on a measured cost."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, inf, isqrt
from typing import get_args

from ma2mba.magc.plan import Nesting, Plan, StashPlace
from ma2mba.planner.cost import Cost
from ma2mba.planner.memory import GIB
from ma2mba.planner.predict import Prediction, predict
from ma2mba.planner.schedule import Workload
from ma2mba.planner.speed import Speed

SHORTEST_CHUNK, LONGEST_CHUNK = 256, 65536
"""A longer chunk is no faster (launches are long hidden) and nears the kernels' 32-bit offsets."""
SHORTEST_STRETCH = 8
"""Chunks; `stash_every` is no matter for a shorter sequence."""
LONGEST_SEGMENT = 64
AS_FAST = 1.01
"""Of plans whose times differ by less, those that leave the host alone, then those without memos, then the smaller:
times are estimates. Memos take what is left, so of plans with them the faster."""


@dataclass(frozen=True)
class Budget:
    """Bytes that a step may take on the device and in host memory (None: keep nothing there), and what of them is taken
    all the time, by part: weights, gradients, optimizer. With `one_memory` the host's is the device's, as on a CPU."""

    device: int
    host: int | None = None
    device_base: dict[str, int] = field(default_factory=dict)
    host_base: dict[str, int] = field(default_factory=dict)
    one_memory: bool = False

    @property
    def most_host(self) -> float:
        return inf if self.host is None else self.host

    def holds(self, prediction: Prediction) -> bool:
        return prediction.device_bytes <= self.device and prediction.host_bytes <= self.most_host


@dataclass(frozen=True)
class Choice:
    """The chosen plan and the next best, and the reasons, one sentence each."""

    best: Prediction
    runner_up: Prediction | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Planner:
    """A model on a machine; `graphs` where chunks can be captured as CUDA graphs. Layers work off more than `reach`
    tokens of a chunk in several calls, without memos, or cannot where ranks share a sequence."""

    cost: Cost
    speed: Speed
    budget: Budget
    graphs: bool = False
    reach: int | None = None

    def beyond_reach(self, workload: Workload, plan: Plan) -> bool:
        """Whether a chunk is longer than one call of a layer takes; a rank's part may be longer by a frame."""
        more = workload.unit if workload.ranks > 1 else 0
        return self.reach is not None and workload.chunk(plan) + more > self.reach

    def predict(self, workload: Workload, plan: Plan) -> Prediction:
        device, host, as_run = self.budget.device_base, self.budget.host_base, plan
        if self.beyond_reach(workload, plan):
            as_run = replace(plan, memo_chunks=0)
        if self.budget.one_memory:
            device, host = device | {part: size + device.get(part, 0) for part, size in host.items()}, {}
            as_run = replace(as_run, stash="device")
        return replace(predict(self.cost, self.speed, workload, as_run, device, host), plan=plan)

    def choose(self, workload: Workload, also: Callable[[Plan], bool] = lambda _: True) -> Choice | None:
        """The fastest plan that fits (and `also` allows) and the next; None when nothing fits."""

        def fits(prediction: Prediction) -> bool:
            return self.budget.holds(prediction) and also(prediction.plan)

        every = self.candidates(workload)
        every += [m for p in every if fits(p) for m in self._with_memos(workload, p.plan, fits)]
        fitting = [p for p in every if fits(p)]
        if not fitting:
            return None
        best = _best(fitting)
        others = [p for p in fitting if not _alike(p.plan, best.plan)]
        return Choice(best, _best(others) if others else None, tuple(self._reasons(best, every)))

    def candidates(self, workload: Workload) -> list[Prediction]:
        """Every plan; where states at every chunk's end are too many, also with the fewest that it takes."""
        predictions = []
        for plan in self._plans(workload):
            predictions.append(self.predict(workload, plan))
            if not self.budget.holds(predictions[-1]):
                predictions += self._coarser(workload, plan)
        return predictions

    def _plans(self, workload: Workload) -> list[Plan]:
        """All candidates but those whose chunks are too long for one call of a layer, unless all are."""
        plans = candidates(self.cost, workload, self.budget.host is not None, self.graphs)
        return [plan for plan in plans if not self.beyond_reach(workload, plan)] or plans

    def _with_memos(self, workload: Workload, plan: Plan, fits: Callable[[Prediction], bool]) -> Iterable[Prediction]:
        """The plan with as many memos as fit, or with one where none do; nothing where memos spare nothing."""
        chunk = workload.chunk(plan)
        others = range(1, ceil(workload.tokens / chunk))  # the last chunk is not recomputed
        possible = plan.allows(self.cost.layers, memo_chunks=1)
        if possible and others and self.cost.memo > 0 and self.speed.memo.at(chunk) > 0:

            def remembering(memos: int) -> Prediction:
                return self.predict(workload, replace(plan, memo_chunks=memos))

            most = bisect_left(others, True, key=lambda memos: not fits(remembering(memos)))
            yield remembering(max(most, 1))

    def _coarser(self, workload: Workload, plan: Plan) -> list[Prediction]:
        """The plan with states kept as rarely as it takes to fit; if that is never enough, as rarely as helps."""
        found: list[Prediction] = []
        for every in reversed(self._segments(workload, plan)):
            prediction = self.predict(workload, replace(plan, stash_every=every))
            fits = self.budget.holds(prediction)
            if found and not fits:
                break
            found = [prediction]
            if not fits:
                break
        return found

    def _segments(self, workload: Workload, plan: Plan) -> list[int]:
        """What `stash_every` may be over 1: with as many chunks as there are segments the fewest states are kept."""
        chunks = ceil(workload.tokens / workload.chunk(plan))
        most = min(isqrt(chunks), LONGEST_SEGMENT)
        return [2**power for power in range(1, most.bit_length())] if chunks >= SHORTEST_STRETCH else []

    def smallest(self, workload: Workload) -> Prediction:
        """The plan that needs the least device memory, within the host's."""
        every = []
        for plan in self._plans(workload):
            segments = (1, *self._segments(workload, plan))
            every += [self.predict(workload, replace(plan, stash_every=k)) for k in (1, segments[-1])]
        within = [p for p in every if p.host_bytes <= self.budget.most_host]
        return min(within or every, key=lambda p: p.device_bytes)

    def longest(self, workload: Workload) -> tuple[int, Plan] | None:
        """The most tokens that fit with any plan that keeps the states of every chunk: beyond a few chunks, memory is a
        straight line in the tokens."""
        far = replace(workload, tokens=8 * LONGEST_CHUNK)
        tokens, plan = max(((self._reach(far, plan), plan) for plan in self._plans(far)), key=lambda pair: pair[0])
        return (tokens * workload.ranks, plan) if tokens > 0 else None

    def _reach(self, far: Workload, plan: Plan) -> int:
        """The most tokens that fit with one plan; 0 unless at least 3 chunks do."""
        near, farther = self.predict(far, plan), self.predict(replace(far, tokens=2 * far.tokens), plan)
        chunk = far.chunk(plan)
        limits = [(near.device_bytes, farther.device_bytes, self.budget.device)]
        if self.budget.host is not None:
            limits.append((near.host_bytes, farther.host_bytes, self.budget.host))
        most = inf
        for start, end, limit in limits:
            if end > start:
                most = min(most, far.tokens + (limit - start) * far.tokens / (end - start))
            elif start > limit:
                return 0
        low, high = 2, int(min(most, 2**40)) // chunk
        while low < high:  # the line may be a little off: chunks are whole
            middle = high if high == low + 1 else (low + high + 1) // 2
            fits = self.budget.holds(self.predict(replace(far, tokens=middle * chunk), plan))
            low, high = (middle, high) if fits else (low, middle - 1)
        return low * chunk if low >= 3 else 0

    def _reasons(self, best: Prediction, every: Sequence[Prediction]) -> Iterable[str]:
        plan = best.plan
        changes: list[tuple[str, Callable[[Plan], bool]]] = [
            ("layer" if plan.nesting == "sequence" else "sequence", lambda p: p.nesting != plan.nesting),
            ("longer chunks", lambda p: p.nesting == plan.nesting and p.chunk_tokens > plan.chunk_tokens),
            ("larger groups", lambda p: _only(p, plan, "group_layers") and p.group_layers > plan.group_layers),
            ("smaller groups", lambda p: _only(p, plan, "group_layers") and p.group_layers < plan.group_layers),
            ("states on the device", lambda p: _only(p, plan, "stash") and plan.stash != p.stash == "device"),
            ("states on the host", lambda p: _only(p, plan, "stash") and plan.stash != p.stash == "host"),
            ("states at every chunk", lambda p: _only(p, plan, "stash_every") and p.stash_every < plan.stash_every),
            ("memos", lambda p: _only(p, plan, "memo_chunks") and p.memo_chunks > plan.memo_chunks),
            ("no memos", lambda p: _only(p, plan, "memo_chunks") and p.memo_chunks < plan.memo_chunks),
            ("without graphs", lambda p: _only(p, plan, "graphs") and plan.graphs > p.graphs),
        ]
        for what, changed in changes:
            others = [p for p in every if p.plan != plan and changed(p.plan)]
            if others:
                name = f"{what} nesting" if what in ("layer", "sequence") else what
                yield f"{name}: {self._against(best, others)}"

    def _against(self, best: Prediction, others: Sequence[Prediction]) -> str:
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


def candidates(cost: Cost, workload: Workload, host: bool, graphs: bool) -> list[Plan]:
    """Every nesting, chunk length, distinct number of groups, place for the states, with and without graphs.

    Chunks are powers of two; where one group holds all layers also lengths between, as memory goes with them there.
    """
    groups = sorted({ceil(cost.layers / count) for count in range(1, cost.layers + 1)})
    places: tuple[StashPlace, ...] = ("device", "host") if host else ("device",)
    plans = [
        Plan(nesting, chunk, group, place)
        for nesting in get_args(Nesting)
        for group in groups
        if nesting == "sequence" or group < cost.layers  # of one group both are the same
        for chunk in chunk_lengths(workload, fine=nesting == "sequence" and group == cost.layers)
        for place in places
    ]
    if not graphs:
        return plans
    return plans + [replace(p, graphs=True) for p in plans if p.allows(cost.layers, graphs=True)]


def chunk_lengths(workload: Workload, fine: bool) -> list[int]:
    """Multiples of 256 up to the first that holds the whole sequence, cut down to whole units: powers of two, and with
    `fine` 1.25, 1.5 and 1.75 of them. Where ranks share the sequence, each has so many."""
    lengths, power = [], SHORTEST_CHUNK
    while power <= LONGEST_CHUNK:
        steps = (4, 5, 6, 7) if fine and 4 * SHORTEST_CHUNK <= power < LONGEST_CHUNK else (4,)
        lengths += [power * step // 4 for step in steps]
        power *= 2
    enough = next((i for i, length in enumerate(lengths) if length >= workload.tokens), len(lengths) - 1)
    own = {length // workload.unit * workload.unit or length for length in lengths[: enough + 1]}
    return sorted(workload.ranks * length for length in own)


def _best(predictions: Sequence[Prediction]) -> Prediction:
    fastest = min(p.seconds for p in predictions)

    def rank(p: Prediction) -> tuple[float, ...]:
        memos = p.plan.memo_chunks > 0
        return p.plan.stash == "host", memos, p.seconds if memos else p.device_bytes, p.host_bytes

    return min((p for p in predictions if p.seconds <= AS_FAST * fastest), key=rank)


def _alike(one: Plan, other: Plan) -> bool:
    """Plans that differ in nothing but the size of their groups and their memos."""
    return _only(one, other, "group_layers")


def _only(one: Plan, other: Plan, name: str) -> bool:
    """Whether nothing else differs; memos may, which follow from the rest and the memory that is left."""
    equal = {name: None, "memo_chunks": None}
    return vars(one) | equal == vars(other) | equal


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
