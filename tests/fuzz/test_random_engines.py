"""Random uses of the engine: each gives the gradients of plain autograd, or an error in words. No third outcome.

A case combines layers, a plan, an entry point, and conditions under which people use PyTorch. Most cases must be exact;
those with a condition of REFUSED must be errors, and then no parameter may have got a gradient.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ma2mba.magc import Plan, checkpoint, stream
from tests.fuzz.test_random_plans import random_plan
from tests.parity.own_layers import OWN, is_wide, own_layers
from tests.parity.recurrent_layers import mamba_layers
from tests.parity.test_silent_gradients import Borrowing, CachedCast, Swapped, WithSpare, loss_of

WIDTH, BOUND = 8, 1e-10
KINDS = [*OWN, "mamba", "cast", "dropout"]
EXACT = [
    "frozen",
    "hook",
    "clamp",
    "post hook",
    "module hook",
    "spare",
    "borrowed",
    "functional",
    "computed",
    "replaced",
]
REFUSED = [
    "outside",
    "swapped",
    "step",
    "buffer step",
    "chunk step",
    "eval",
    "batch norm",
    "attribute",
    "twice",
    "graph",
]
WORDS = ("layer", "chunk", "backward", "modified by an inplace operation")


class Dropping(nn.Module):
    """A linear recurrence with dropout, which draws random numbers in every call."""

    def __init__(self, width: int):
        super().__init__()
        self.project = nn.Linear(width, width)

    def forward(self, x, state):
        sums = state[0][:, None] + torch.cumsum(torch.dropout(self.project(x), 0.3, True), 1)
        return x + sums.sin(), (sums[:, -1],)

    def initial_state(self, x):
        return (x.new_zeros(x.shape[0], x.shape[2]),)


class Keeping(nn.Module):
    """Another layer, and what may not change in forward: running statistics, or an attribute."""

    def __init__(self, layer: nn.Module, how: str):
        super().__init__()
        self.layer, self.how, self.norm = layer, how, nn.BatchNorm1d(WIDTH).double()

    def forward(self, x, state):
        if self.how == "batch norm":
            x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        else:
            self.last = x.detach()
        return self.layer(x, state)

    def initial_state(self, x):
        return self.layer.initial_state(x)


@dataclass
class Case:
    """One use of the engine. `model` runs its layers with the engine or plainly."""

    layers: nn.ModuleList
    x: Tensor
    plan: Plan
    given_states: list | None
    streamed: bool
    autocast: bool
    conditions: set[str]
    rng: object
    turns: int
    outside: nn.Linear = field(default_factory=lambda: nn.Linear(2, 2).double())

    def __post_init__(self):
        self.scale, self.shift = nn.Linear(WIDTH, WIDTH).double(), nn.Linear(WIDTH, WIDTH).double()

    def parameters(self) -> dict[str, Tensor]:
        modules = {"layers": self.layers, "scale": self.scale, "shift": self.shift, "outside": self.outside}
        named = {f"{k}.{n}": p for k, module in modules.items() for n, p in module.named_parameters()}
        states = [] if self.given_states is None else [t for state in self.given_states for t in state]
        return named | {"x": self.x} | {f"state {i}": t for i, t in enumerate(states)}

    def front(self, x: Tensor) -> tuple[Tensor]:
        return (x + self.scale(x),)

    def head(self, x: Tensor) -> tuple[Tensor]:
        return (self.shift(x).sin().sum(),)

    def chunks(self) -> list[tuple[Tensor]]:
        return [(part.detach(),) for part in self.x.split(self.plan.chunk_tokens, 1)]

    def engine(self, layers: nn.ModuleList) -> tuple[Tensor, list[tuple[Tensor]]]:
        """Return the loss, and the chunks that were given."""
        chunks = self.chunks()
        if self.streamed:
            modules = [self.scale, self.shift]
            total, after = stream(self.front, layers, self.head, modules, chunks, self.given_states, self.plan)
            return total + loss_of(total[None], after), chunks
        return loss_of(*checkpoint(layers, self.x, self.given_states, self.plan)), [(self.x,)]

    def plain(self, layers: nn.ModuleList) -> tuple[Tensor, list[tuple[Tensor]]]:
        """As `engine`, with plain autograd. Layers draw random numbers in the order of the plan."""
        values = (
            [self.front(*chunk)[0] for chunk in self.chunks()]
            if self.streamed
            else [*self.x.split(self.plan.chunk_tokens, 1)]
        )
        states = self.given_states or [layer.initial_state(values[0]) for layer in layers]
        states, group = list(states), self.plan.group_layers
        cells = (
            [(chunk, number) for chunk in range(len(values)) for number in range(len(layers))]
            if self.plan.nesting == "sequence"
            else [
                (chunk, number)
                for start in range(0, len(layers), group)
                for chunk in range(len(values))
                for number in range(start, min(start + group, len(layers)))
            ]
        )
        for chunk, number in cells:
            values[chunk], states[number] = layers[number](values[chunk], states[number])
        if self.streamed:
            total = sum(self.head(value)[0] for value in values)
            return total + loss_of(total[None], states), []
        return loss_of(torch.cat(values, 1), states), []


class Model(nn.Module):
    def __init__(self, case: Case, run):
        super().__init__()
        self.layers, self.run = case.layers, run

    def forward(self):
        return self.run(self.layers)


def random_layers(rng, count: int) -> nn.ModuleList:
    kinds = [rng.choice(KINDS) for _ in range(count)]
    makers = {"mamba": lambda: mamba_layers(1, WIDTH)[0], "dropout": lambda: Dropping(WIDTH).double()}
    makers |= {"cast": lambda: CachedCast(WIDTH)}
    return nn.ModuleList(makers[k]() if k in makers else own_layers(k, 1, WIDTH)[0] for k in kinds)


def random_case(rng) -> Case:
    torch.manual_seed(rng.randrange(1 << 30))
    layers = random_layers(rng, rng.randint(1, 4))
    x = torch.randn(rng.randint(1, 3), rng.randint(1, 20), WIDTH, dtype=torch.double)
    streamed = rng.random() < 0.4
    x.requires_grad_(not streamed and rng.random() < 0.8)
    states = None
    if rng.random() < 0.4:
        states = [
            tuple(torch.randn_like(t).requires_grad_() if is_wide(t) else t for t in layer.initial_state(x))
            for layer in layers
        ]
    conditions = set(rng.sample(EXACT, rng.randint(0, 3)))
    if rng.random() < 0.3:
        conditions.add(rng.choice(REFUSED))
    plan, turns = random_plan(rng, len(layers)), rng.randint(1, 3)
    if "frozen" in conditions and not streamed:  # something must need a gradient
        x.requires_grad_(True)
    if "shared" in conditions:  # both have one kind of state
        states = None
    case = Case(layers, x, plan, states, streamed, rng.random() < 0.3, conditions, rng, turns)
    adapt(case)
    return case


def adapt(case: Case) -> None:
    """Apply the conditions that hold for the whole case. Drop those that do not apply."""
    rng, layers, conditions = case.rng, case.layers, case.conditions
    at = rng.randrange(len(layers))
    if conditions & {"functional", "computed"}:  # they bring weights of their own
        conditions -= {"hook", "clamp", "post hook", "frozen", "replaced", "step", "borrowed"}
    if "computed" in conditions:
        conditions.discard("functional")
    trained = [p for p in layers.parameters() if p.requires_grad]
    if "frozen" in conditions:
        rng.choice([*layers, case.scale, case.shift]).requires_grad_(False)
    for name, change in (("hook", lambda g: 2 * g), ("clamp", lambda g: g / (1 + g.abs()))):
        if name in conditions:
            target = rng.choice(trained)
            if target.requires_grad:
                target.register_hook(change)
    if "post hook" in conditions:
        target = rng.choice(trained)
        if target.requires_grad:
            target.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", p.grad * 0.5))
    if "module hook" in conditions:
        layers[at].register_forward_hook(lambda _, __, out: (out[0] * 1.5, out[1]))
    if "shared" in conditions:
        layers[-1] = layers[0]
    if "spare" in conditions:
        layers[at] = WithSpare(layers[at])
    if "borrowed" in conditions:
        layers[at] = Borrowing(layers[at], real_one(rng, trained))
    if "outside" in conditions:
        layers[at] = Borrowing(layers[at], case.outside.weight)
    if "swapped" in conditions:
        layers[at] = Swapped(own_layers("gru", 1, WIDTH)[0])
        case.given_states = None
    if len(case.x) == 1:  # BatchNorm needs two values
        conditions.discard("batch norm")
    for how in ("batch norm", "attribute"):
        if how in conditions:
            layers[at] = Keeping(layers[at], how)


def real_one(rng, parameters) -> Tensor:
    """Return a real parameter, or a new one that no layer owns but that needs no gradient."""
    real = [p for p in parameters if not p.is_complex()]
    return rng.choice(real) if real else torch.ones(2, dtype=torch.double)


def disturb(case: Case, chunks, loss: Tensor, weights: dict[str, Tensor]) -> None:
    """Do between forward and backward what a condition says."""
    rng, conditions = case.rng, case.conditions
    used = [w for w in weights.values() if w.is_leaf] or [*case.layers.parameters()]
    with torch.no_grad():
        if "step" in conditions:
            rng.choice(used).mul_(1.5)
        if "buffer step" in conditions:
            next(case.layers.buffers()).add_(1)
        if "chunk step" in conditions:
            rng.choice(chunks)[0].add_(1)
    if "eval" in conditions:
        case.layers.eval()
    if "replaced" in conditions:
        owner, name = next((m, n) for m in case.layers.modules() for n, p in m._parameters.items() if p is not None)
        setattr(owner, name, nn.Parameter(torch.zeros_like(owner._parameters[name])))
    if "twice" in conditions:
        loss.backward(retain_graph=True)
    if "graph" in conditions:
        loss.backward(create_graph=True)


def gradients(case: Case, run, disturbed: bool) -> dict[str, Tensor | None]:
    """Return the gradients of all turns together, as `.grad` has them."""
    named = case.parameters()
    sources = {n: p for n, p in named.items() if n.startswith("layers.")}
    weights = {}
    if case.conditions & {"functional", "computed"}:
        torch.manual_seed(0)
        sources = {n: (1.1 * p.detach()).requires_grad_() for n, p in sources.items()}
        named |= {f"source {n}": p for n, p in sources.items()}
    for tensor in named.values():
        tensor.grad = None
    torch.manual_seed(case.turns)
    model, losses, chunks = Model(case, run), [], []
    for _ in range(case.turns):
        CachedCast.cache.clear()  # as autocast does when its block ends
        with torch.autocast("cpu", torch.bfloat16) if case.autocast else nullcontext():
            if case.conditions & {"functional", "computed"}:
                weights = {n: p * 2 if "computed" in case.conditions else p for n, p in sources.items()}
                loss, given = functional_call(model, weights, ())
            else:
                loss, given = model()
        losses.append(loss)
        chunks += given
    if disturbed:
        disturb(case, chunks, losses[-1], weights)
    for loss in losses:
        loss.backward()
    return {name: None if tensor.grad is None else tensor.grad.clone() for name, tensor in named.items()}


def applies(case: Case) -> set[str]:
    """Return the conditions of REFUSED that this case really has."""
    refused = case.conditions & set(REFUSED)
    if not [*case.layers.buffers()]:
        refused.discard("buffer step")
    case.conditions -= set(REFUSED) - refused
    return refused


def apart(found: Tensor | None, right: Tensor | None) -> float:
    if found is None or right is None:
        return 0.0 if found is right else float("inf")
    return ((found - right).norm() / right.norm().clamp(min=1e-9)).item()


def test_every_use_is_exact_or_refused(rounds):
    counts = {"exact": 0, "refused": 0}
    for rng in rounds:
        case = random_case(rng)
        must_refuse = applies(case)
        layers = [type(layer).__name__ for layer in case.layers]
        print(f"{layers} {tuple(case.x.shape)} {case.plan} streamed={case.streamed} autocast={case.autocast}")
        print(f"{sorted(case.conditions)} states={case.given_states is not None} turns={case.turns}")
        right = gradients(case, case.plain, disturbed=False)
        error = None
        try:
            found = gradients(case, case.engine, disturbed=True)
        except (RuntimeError, ValueError) as raised:
            error = raised
        if error is not None:
            assert must_refuse, error
            assert any(word in str(error) for word in WORDS), error
            if must_refuse != {"twice"} and case.turns == 1:
                assert all(t.grad is None for n, t in case.parameters().items() if n.startswith("layers."))
            counts["refused"] += 1
            continue
        worst = {name: apart(found[name], right[name]) for name in right}
        assert max(worst.values()) < BOUND, {name: value for name, value in worst.items() if value >= BOUND}
        counts["exact"] += 1
    print(counts)
