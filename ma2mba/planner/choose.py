"""Choose the fastest plan that fits, and give the reasons. Pure arithmetic on a measured cost."""

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
"""In tokens. A longer chunk is not faster, because launches are hidden, and nears the kernels' 32-bit offsets."""
FEWEST_CHUNKS = 8
"""`stash_every` saves little in a sequence of fewer chunks."""
LONGEST_SEGMENT = 64
AS_FAST = 1.01
"""Times are estimates, so plans within 1% of the fastest count as equally fast.

`_best` chooses among these plans. It prefers plans that use no host memory, then plans without memos. Among plans
without memos it takes the plan that needs the least memory. Among plans with memos it takes the fastest plan.
"""


@dataclass(frozen=True)
class Budget:
    """The memory of a step, in bytes.

    device, host  the limits. A `host` of None keeps nothing in host memory.
    device_base   what is taken all the time, by kind of use (weights, gradients, optimizer); host_base in host memory.
    one_memory    host memory and device memory are the same, as on a CPU.
    """

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
    """The chosen plan, the next best, and one reason for each kind of alternative."""

    best: Prediction
    runner_up: Prediction | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Planner:
    """A model on a machine.

    graphs        chunks can be captured as CUDA graphs.
    longest_call  the most tokens of one call of every layer (None: no limit). Layers split a longer chunk into several
                  calls and keep no memo of the chunk. Where ranks share a sequence, layers cannot split a chunk.
    """

    cost: Cost
    speed: Speed
    budget: Budget
    graphs: bool = False
    longest_call: int | None = None

    def splits_calls(self, workload: Workload, plan: Plan) -> bool:
        """Return True when a chunk is longer than one call of a layer. A rank's share may be longer by a frame."""
        more = workload.unit if workload.ranks > 1 else 0
        return self.longest_call is not None and workload.chunk(plan) + more > self.longest_call

    def predict(self, workload: Workload, plan: Plan) -> Prediction:
        """Return the memory and the time of a step under `plan`."""
        device, host, as_run = self.budget.device_base, self.budget.host_base, plan
        if self.splits_calls(workload, plan):
            as_run = replace(plan, memo_chunks=0)
        if self.budget.one_memory:
            device, host = device | {use: size + device.get(use, 0) for use, size in host.items()}, {}
            as_run = replace(as_run, stash="device")
        return replace(predict(self.cost, self.speed, workload, as_run, device, host), plan=plan)

    def choose(self, workload: Workload, also: Callable[[Plan], bool] = lambda _: True) -> Choice | None:
        """Return the fastest plan that fits and that `also` allows, and the next best; None when no plan fits."""

        def fits(prediction: Prediction) -> bool:
            return self.budget.holds(prediction) and also(prediction.plan)

        every = self.candidates(workload)
        every += [more for p in every if fits(p) for more in self._with_memos(workload, p.plan, fits)]
        fitting = [p for p in every if fits(p)]
        if not fitting:
            return None
        best = _best(fitting)
        others = [p for p in fitting if not _only(p.plan, best.plan, "group_layers")]
        return Choice(best, _best(others) if others else None, tuple(self._reasons(best, every)))

    def candidates(self, workload: Workload) -> list[Prediction]:
        """Predict every plan. Where the states of every chunk do not fit, also predict the plan with as many as fit."""
        predictions = []
        for plan in self._plans(workload):
            predictions.append(self.predict(workload, plan))
            if not self.budget.holds(predictions[-1]):
                predictions += self._coarser(workload, plan)
        return predictions

    def _plans(self, workload: Workload) -> list[Plan]:
        """Return the candidates whose chunks one call of a layer takes; all candidates if there is none."""
        plans = candidates(self.cost, workload, self.budget.host is not None, self.graphs)
        return [plan for plan in plans if not self.splits_calls(workload, plan)] or plans

    def _with_memos(self, workload: Workload, plan: Plan, fits: Callable[[Prediction], bool]) -> Iterable[Prediction]:
        """Yield the plan with as many memos as fit, or with one if none fits; nothing where memos save nothing."""
        chunk = workload.chunk(plan)
        counts = range(1, ceil(workload.tokens / chunk))  # the last chunk is not recomputed
        possible = plan.allows(len(self.cost.layers), memo_chunks=1)
        if possible and counts and self.cost.stack.memo > 0 and self.speed.saved_by_memos(chunk, 1) > 0:

            def remembering(memos: int) -> Prediction:
                return self.predict(workload, replace(plan, memo_chunks=memos))

            most = bisect_left(counts, True, key=lambda memos: not fits(remembering(memos)))
            yield remembering(max(most, 1))

    def _coarser(self, workload: Workload, plan: Plan) -> list[Prediction]:
        """Return the plan with the smallest `stash_every` above 1 that fits; if none fits, the one with the largest.

        The list has one plan, or none where `stash_every` saves little.
        """
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
        """Return the values of `stash_every` above 1 to try. The square root of the chunks keeps the fewest states."""
        chunks = ceil(workload.tokens / workload.chunk(plan))
        most = min(isqrt(chunks), LONGEST_SEGMENT)
        return [2**power for power in range(1, most.bit_length())] if chunks >= FEWEST_CHUNKS else []

    def smallest(self, workload: Workload) -> Prediction:
        """Return the plan that needs the least device memory, among plans that fit in host memory if there is one."""
        every = []
        for plan in self._plans(workload):
            segments = (1, *self._segments(workload, plan))
            every += [self.predict(workload, replace(plan, stash_every=k)) for k in (1, segments[-1])]
        within = [p for p in every if p.host_bytes <= self.budget.most_host]
        return min(within or every, key=lambda p: p.device_bytes)

    def longest(self, workload: Workload) -> tuple[int, Plan] | None:
        """Return the most tokens that fit with any plan that keeps the states of every chunk, and the plan.

        The number counts the tokens of all ranks. Beyond a few chunks, memory is a straight line in the tokens.
        """
        far = replace(workload, tokens=8 * LONGEST_CHUNK)
        tokens, plan = max(
            ((self._most_tokens(far, plan), plan) for plan in self._plans(far)), key=lambda pair: pair[0]
        )
        return (tokens * workload.ranks, plan) if tokens > 0 else None

    def _most_tokens(self, far: Workload, plan: Plan) -> int:
        """Return the most tokens that fit with one plan; 0 unless at least 3 chunks fit."""
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
        while low < high:  # the line is not exact: chunks are whole
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
                return f"would need at least {_gib(least.device_bytes)} of device memory"
            return f"would need {_gib(least.host_bytes)} of host memory"
        other = _best(fitting)
        slower = other.seconds / best.seconds - 1
        if abs(slower) < AS_FAST - 1:
            return f"as fast, {_gib(other.device_bytes)} instead of {_gib(best.device_bytes)}"
        return f"{slower:.0%} slower with {_gib(other.device_bytes)}"


def candidates(cost: Cost, workload: Workload, host: bool, graphs: bool) -> list[Plan]:
    """Return plans of every nesting, chunk length, number of layer groups and place of states, with and without graphs.

    Chunks are powers of two. With one group of all layers, lengths between them are tried too, because memory follows
    the chunk's length there.
    """
    layers = len(cost.layers)
    groups = sorted({ceil(layers / count) for count in range(1, layers + 1)})
    places: tuple[StashPlace, ...] = ("device", "host") if host else ("device",)
    plans = [
        Plan(nesting, chunk, group, place)
        for nesting in get_args(Nesting)
        for group in groups
        if nesting == "sequence" or group < layers  # with one group both are the same
        for chunk in chunk_lengths(workload, fine=nesting == "sequence" and group == layers)
        for place in places
    ]
    if not graphs:
        return plans
    return plans + [replace(p, graphs=True) for p in plans if p.allows(layers, graphs=True)]


def chunk_lengths(workload: Workload, fine: bool) -> list[int]:
    """Return the chunk lengths to try, up to the first that holds the whole sequence: powers of two in whole units.

    `fine` adds 1.25, 1.5 and 1.75 times the powers of two. The lengths count the tokens of all ranks that share the
    sequence.
    """
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


def _only(one: Plan, other: Plan, name: str) -> bool:
    """Return True when plans differ at most in `name` and in memos, which follow from the memory that is left."""
    equal = {name: None, "memo_chunks": None}
    return vars(one) | equal == vars(other) | equal


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
