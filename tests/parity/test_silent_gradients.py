"""No gradient is silently wrong: each way to use PyTorch gives the gradients of plain autograd in fp64, or an error.

BEFORE names what the engine gave before this file existed. Worst relative error of all exact cases: 3e-15 measured,
1e-10 allowed.
"""

import gc
import random
from contextlib import nullcontext
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from ma2mba.magc import Plan, Streamer, checkpoint, stream
from tests.parity.own_layers import OWN, GRULayer, is_wide, own_layers
from tests.parity.recurrent_layers import run_plainly

TOKENS, WIDTH, BOUND = 13, 8, 1e-10
PLANS = [
    Plan(nesting, chunk, group)
    for nesting in ("sequence", "layer")
    for chunk, group in ((1, 1), (5, 2), (5, 3), (13, 3), (50, 1))
]
every_plan = pytest.mark.parametrize("plan", PLANS, ids=lambda p: f"{p.nesting}-{p.chunk_tokens}-{p.group_layers}")


def plain(layers, x: Tensor, states=None, plan=None) -> tuple[Tensor, list]:
    return run_plainly(layers, x, states or [layer.initial_state(x) for layer in layers])


def with_engine(layers, x: Tensor, states=None, plan=PLANS[1], **options) -> tuple[Tensor, list]:
    return checkpoint(layers, x, states, plan, **options)


def loss_of(y: Tensor, after) -> Tensor:
    """Return a loss in which every element of the output and of the final states has another weight."""
    parts = [y, *(t for state in after for t in state if is_wide(t))]
    parts = [torch.view_as_real(part) if part.is_complex() else part for part in parts]
    return sum((p * torch.linspace(-1, 1, p.numel(), dtype=p.dtype).view_as(p).sin()).sum() for p in parts)


def given(kind: str = "gru", layers: int = 3) -> tuple[nn.ModuleList, Tensor]:
    torch.manual_seed(0)
    modules = own_layers(kind, layers, WIDTH)
    return modules, torch.randn(2, TOKENS, WIDTH, dtype=torch.double, requires_grad=True)


def gradients(run, layers, x: Tensor, plan: Plan) -> dict[str, Tensor | None]:
    """Return the gradients of one forward and backward, as `.grad` has them afterwards."""
    layers.zero_grad(set_to_none=True)
    x.grad = None
    loss_of(*run(layers, x, plan=plan)).backward()
    return {"x": x.grad, **{name: p.grad for name, p in layers.named_parameters()}}


def differences(found, right) -> dict[str, float]:
    """Return relative errors by name; infinity where only one of the two is None."""
    apart = {}
    for name, exact in right.items():
        if found[name] is None or exact is None:
            apart[name] = 0.0 if found[name] is exact else float("inf")
        else:
            apart[name] = ((found[name] - exact).norm() / exact.norm().clamp(min=1e-300)).item()
    return apart


def assert_exact(layers, x: Tensor, plan: Plan) -> None:
    found, right = gradients(with_engine, layers, x, plan), gradients(plain, layers, x, plan)
    apart = differences(found, right)
    assert max(apart.values()) < BOUND, apart


@every_plan
@pytest.mark.parametrize("kind", OWN)
def test_the_callers_own_layers(kind, plan):
    """BEFORE: lru, whose states are complex: 36% to 78% off; no gradient crossed a chunk. The others were exact."""
    assert_exact(*given(kind), plan)


@every_plan
def test_complex_states_of_the_caller(plan):
    """BEFORE: the gradient of the first state was None."""
    layers, x = given("lru")
    states = [tuple(torch.randn_like(t).requires_grad_() for t in layer.initial_state(x)) for layer in layers]
    inputs = [x, *(t for state in states for t in state), *layers.parameters()]
    found, right = (torch.autograd.grad(loss_of(*run(layers, x, states, plan)), inputs) for run in (with_engine, plain))
    assert max(differences(dict(enumerate(found)), dict(enumerate(right))).values()) < BOUND


class Swapped(nn.Module):
    """A layer as FSDP2 leaves it: hooks put gathered parameters in place for each call, and remove them after it."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer
        self.own = dict(layer.gru._parameters)
        self.gathered = {name: nn.Parameter(p.detach().clone()) for name, p in self.own.items()}
        for module, table in ((layer.gru.register_forward_pre_hook, True), (layer.gru.register_forward_hook, False)):
            module(lambda gru, *_, table=table: gru._parameters.update(self.gathered if table else self.own))

    def forward(self, x, state):
        return self.layer(x, state)

    def initial_state(self, x):
        return self.layer.initial_state(x)


@every_plan
def test_parameters_that_hooks_swap_in_every_call(plan):
    """BEFORE: the gradients of all parameters were zeros."""
    layers, x = given()
    swapped = nn.ModuleList([layers[0], Swapped(layers[1]), layers[2]])
    with pytest.raises(ValueError, match=r"layer 1 \(Swapped\) uses .* which needs a gradient but would get none"):
        checkpoint(swapped, x, None, plan)


def test_fsdp2_under_the_layers_is_named():
    """BEFORE: the gradients of all parameters were zeros."""
    layers, x = given()
    layers[1].__class__ = type("FSDPGRULayer", (type("FSDPModule", (), {}), GRULayer), {})
    with pytest.raises(ValueError, match=r"layer 1 \(FSDPGRULayer\): FSDP has sharded this module"):
        checkpoint(layers, x, None, PLANS[1])


def test_zero3_under_the_layers_is_named():
    layers, x = given()
    layers[2].gru.weight_hh_l0.ds_status = type("ZeroParamStatus", (), {"name": "NOT_AVAILABLE"})
    with pytest.raises(ValueError, match=r"layer 2 \(GRULayer\): gru: ZeRO 3 has partitioned .*weight_hh_l0"):
        checkpoint(layers, x, None, PLANS[1])


class CachedCast(nn.Module):
    """A product under the autocast of torch 2.10: while the cache is enabled, the cast of a weight is used again, even
    if it was made under no_grad. The cast is to fp64, so that the result is exact.
    """

    cache: ClassVar[dict[int, Tensor]] = {}

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width, dtype=torch.double))

    def cast(self) -> Tensor:
        if not torch.is_autocast_cache_enabled():
            return self.weight * 1
        return self.cache.setdefault(id(self.weight), self.weight * 1)

    def forward(self, x, state):
        sums = state[0][:, None] + torch.cumsum(x @ self.cast(), 1)
        return x + sums.sin(), (sums[:, -1],)

    def initial_state(self, x):
        return (x.new_zeros(x.shape[0], x.shape[2]),)


@every_plan
def test_autocast_reuses_no_cast_that_was_made_without_gradients(plan):
    """BEFORE, on torch 2.10 to 2.12: the last chunk's share of the gradient was lost, 32% here."""
    torch.manual_seed(0)
    layers = nn.ModuleList(CachedCast(WIDTH) for _ in range(3))
    x = torch.randn(2, TOKENS, WIDTH, dtype=torch.double, requires_grad=True)
    found = []
    for run in (with_engine, plain):
        CachedCast.cache.clear()
        found.append(gradients(run, layers, x, plan))
        # Nothing that the engine ran without gradients may be left for the caller's own code.
        assert all(cast.requires_grad for cast in CachedCast.cache.values())
    assert max(differences(*found).values()) < BOUND


@every_plan
def test_autocast_of_torch_gives_every_chunk_its_share(plan):
    """In bf16: the gradients of two groupings of the same chunks are equal."""
    torch.manual_seed(0)
    layers = nn.ModuleList(GRULayer(WIDTH) for _ in range(3))
    for layer in layers:
        layer.gru = nn.GRUCell(WIDTH, WIDTH)
        layer.forward = lambda x, s, cell=layer.gru: _cells(cell, x, s)
        layer.initial_state = lambda x: (x.new_zeros(x.shape[0], WIDTH),)
    x = torch.randn(2, TOKENS, WIDTH, requires_grad=True)
    found = []
    for run in (with_engine, plain):
        layers.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            run(layers, x, plan=plan)[0].float().square().sum().backward()
        found.append({name: p.grad.clone() for name, p in layers.named_parameters()})
    assert max(differences(*found).values()) < 2e-2  # bf16: 3e-3 measured


def _cells(cell, x, state):
    (hidden,), seen = state, []
    for token in x.unbind(1):
        hidden = cell(token, hidden)
        seen.append(hidden)
    return x + torch.stack(seen, 1), (hidden,)


@every_plan
@pytest.mark.parametrize("post", [False, True])
def test_a_hook_of_a_parameter_runs_once_with_the_whole_gradient(plan, post):
    """BEFORE: a clamp by `register_hook` ran once in each cell and once more: 67% to 76% off here."""
    layers, x = given()
    weight, calls = layers[1].gru.weight_hh_l0, []

    def clamp(gradient):
        calls.append(1)
        return gradient.clamp(-0.01, 0.01)

    if post:
        weight.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", clamp(p.grad)))
    else:
        weight.register_hook(clamp)
    assert_exact(layers, x, plan)
    assert len(calls) == 2  # once with the engine, once without


class Model(nn.Module):
    """A model that runs its layers with or without the engine, for `functional_call`."""

    def __init__(self, layers: nn.ModuleList, run, plan: Plan):
        super().__init__()
        self.layers, self.run, self.plan = layers, run, plan

    def forward(self, x):
        return loss_of(*self.run(self.layers, x, plan=self.plan))


@every_plan
@pytest.mark.parametrize("computed", [False, True])
def test_weights_of_functional_call(plan, computed):
    """Weights that are leaves (the first step of MAML), or the result of operations (a hypernetwork).

    BEFORE: the gradients were zeros, or the last chunk's alone.
    """
    layers, x = given()
    torch.manual_seed(1)
    source = {f"layers.{name}": (2 * p.detach()).requires_grad_() for name, p in layers.named_parameters()}
    found = []
    for run in (with_engine, plain):
        weights = {name: p.sin() for name, p in source.items()} if computed else source
        loss = functional_call(Model(layers, run, plan), weights, (x,))
        found.append(dict(enumerate(torch.autograd.grad(loss, [x, *source.values()]))))
    assert max(differences(*found).values()) < BOUND
    assert all(p.grad is None for p in layers.parameters())


@every_plan
def test_a_parameter_replaced_after_forward(plan):
    """BEFORE: 100% off with several groups: the new parameter was used, and got the gradient."""
    layers, x = given()
    right = gradients(plain, layers, x, plan)["0.gru.weight_hh_l0"]
    layers.zero_grad()
    old = layers[0].gru.weight_hh_l0
    y, after = checkpoint(layers, x, None, plan)
    layers[0].gru.weight_hh_l0 = new = nn.Parameter(torch.zeros_like(old))
    loss_of(y, after).backward()
    assert differences({"w": old.grad}, {"w": right})["w"] < BOUND
    assert new.grad is None
    assert layers[0].gru.weight_hh_l0 is new


@every_plan
@pytest.mark.parametrize("which", ["trained", "frozen", "buffer"])
def test_weights_changed_in_place_between_forward_and_backward(plan, which):
    """BEFORE: recomputed with the new weights, 71% to 161% off with several groups or layer nesting."""
    layers, x = given("buffers")
    layers[0].requires_grad_(which != "frozen")
    y, after = checkpoint(layers, x, None, plan)
    with torch.no_grad():
        (layers[0].table if which == "buffer" else layers[0].project.weight).mul_(1.5)
    name = "buffer `table`" if which == "buffer" else "parameter `weight`"
    with pytest.raises(RuntimeError, match=rf"layer 0 \(BufferedLayer\).*: the {name} .*between forward and backward"):
        loss_of(y, after).backward()


def test_weights_converted_between_forward_and_backward():
    layers, x = given("buffers")
    y, after = checkpoint(layers.float(), x.float(), None, PLANS[1])
    layers.double()
    with pytest.raises(RuntimeError, match="the parameter `weight` was converted between forward and backward"):
        loss_of(y, after).backward()


class Scripted(nn.Module):
    """A layer with a part that torch.jit has compiled."""

    def __init__(self):
        super().__init__()
        self.project = torch.jit.script(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()).double())

    def forward(self, x, state):
        sums = state[0][:, None] + torch.cumsum(self.project(x), 1)
        return x + sums.sin(), (sums[:, -1],)

    def initial_state(self, x):
        return (x.new_zeros(x.shape[0], x.shape[2]),)


@every_plan
def test_scripted_modules(plan):
    _, x = given()
    layers = nn.ModuleList(Scripted() for _ in range(3))
    assert_exact(layers, x, plan)
    y, after = checkpoint(layers, x, None, plan)
    with torch.no_grad():
        next(layers[0].parameters()).mul_(1.5)
    with pytest.raises(RuntimeError, match="the parameter `weight` was changed in place"):
        loss_of(y, after).backward()


def test_train_or_eval_between_forward_and_backward():
    """BEFORE: dropout differed in the recomputation."""
    layers, x = given()
    y, after = checkpoint(layers, x, None, PLANS[1])
    layers.eval()
    with pytest.raises(RuntimeError, match=r"layer 0 \(GRULayer\): train\(\) or eval\(\) was called"):
        loss_of(y, after).backward()


class WithSpare(nn.Module):
    """A layer with a parameter that no output depends on."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer, self.spare = layer, nn.Parameter(torch.ones(2, dtype=torch.double))

    def forward(self, x, state):
        return self.layer(x, state)

    def initial_state(self, x):
        return self.layer.initial_state(x)


@every_plan
def test_a_parameter_that_no_output_depends_on(plan):
    """BEFORE: zeros instead of None, so AdamW decayed the parameter."""
    layers, x = given()
    layers[1] = WithSpare(layers[1])
    assert_exact(layers, x, plan)
    assert layers[1].spare.grad is None
    loss_of(*checkpoint(layers, x, None, plan, zeros_for_unused=True)).backward()
    assert torch.equal(layers[1].spare.grad, torch.zeros(2, dtype=torch.double))


class Borrowing(nn.Module):
    """A layer that multiplies by a weight that is not its own."""

    def __init__(self, layer: nn.Module, weight):
        super().__init__()
        self.layer, self.borrowed = layer, [weight]

    def forward(self, x, state):
        y, after = self.layer(x, state)
        return y * self.borrowed[0].mean().exp(), after

    def initial_state(self, x):
        return self.layer.initial_state(x)


@every_plan
def test_a_layer_that_uses_the_weight_of_another_layer(plan):
    """BEFORE: its share of the gradient (2%) was lost if the two layers were in different groups."""
    layers, x = given()
    layers[2] = Borrowing(layers[2], layers[0].gru.weight_hh_l0)
    assert_exact(layers, x, plan)


@every_plan
def test_a_layer_that_uses_a_parameter_of_no_layer(plan):
    """BEFORE: no gradient and no warning."""
    layers, x = given()
    outside = nn.Linear(2, 2).double()
    layers[1] = Borrowing(layers[1], outside.weight)
    with pytest.raises(ValueError, match=r"layer 1 \(Borrowing\) uses `weight` of a Linear, .* would get none"):
        checkpoint(layers, x, None, plan)
    outside.requires_grad_(False)
    checkpoint(layers, x, None, plan)


def test_a_layer_that_uses_a_tensor_computed_outside():
    layers, x = given()
    layers[1] = Borrowing(layers[1], nn.Linear(2, 2).double().weight * 2)
    with pytest.raises(ValueError, match=r"layer 1 \(Borrowing\) uses a tensor that was computed outside"):
        checkpoint(layers, x, None, PLANS[1])


def streamed(kind: str = "gru", later: bool = False):
    """Return layers, embedding, head and chunks of a small language model, and its front and head functions."""
    torch.manual_seed(0)
    layers = own_layers(kind, 3, WIDTH)
    embedding, head = nn.Embedding(16, WIDTH).double(), nn.Linear(WIDTH, 16).double()
    ids = torch.randint(0, 16, (2, TOKENS + 1))
    chunks = [*zip(ids[:, :-1].split(5, 1), ids[:, 1:].split(5, 1), strict=True)]
    loss = nn.CrossEntropyLoss(reduction="sum")

    def front(ids, targets):
        return embedding(ids), targets

    def last(x, targets):
        return (loss(head(x).flatten(0, 1), targets.flatten()),)

    return layers, embedding, head, chunks, front, last


def plain_stream(layers, chunks, front, last) -> Tensor:
    states, total = None, 0.0
    for chunk in chunks:
        x, *others = front(*chunk)
        x, states = plain(layers, x, states)
        total = total + last(x, *others)[0]
    return total


STREAMED = [Plan(nesting, 5, group) for nesting in ("sequence", "layer") for group in (1, 3)]


@pytest.mark.parametrize("plan", STREAMED)
@pytest.mark.parametrize("kind", OWN)
def test_a_streamed_model_without_states(kind, plan):
    """BEFORE: `states=None` was a TypeError."""
    layers, embedding, head, chunks, front, last = streamed(kind)
    modules = nn.ModuleList([*layers, embedding, head])
    found = []
    for run in (lambda: stream(front, layers, last, [embedding, head], chunks, None, plan)[0], None):
        modules.zero_grad(set_to_none=True)
        (run() if run else plain_stream(layers, chunks, front, last)).backward()
        found.append({name: p.grad for name, p in modules.named_parameters()})
    assert max(differences(*found).values()) < BOUND


@pytest.mark.parametrize("plan", STREAMED)
@pytest.mark.parametrize("unnamed", ["front", "head"])
def test_a_module_that_stream_is_not_told_of(unnamed, plan):
    """BEFORE: no gradient and no warning."""
    layers, embedding, head, chunks, front, last = streamed()
    modules, used = ([head], "Embedding") if unnamed == "front" else ([embedding], "Linear")
    with pytest.raises(ValueError, match=rf"{unnamed} uses `\w+` of a {used}, .*Name its module in `modules`"):
        stream(front, layers, last, modules, chunks, None, plan)


@pytest.mark.parametrize("plan", STREAMED)
def test_a_module_that_only_a_later_chunk_uses(plan):
    """BEFORE: no gradient and no warning. Front and head are examined on every chunk, before any gradient is given."""
    layers, embedding, head, chunks, front, last = streamed()
    extra = nn.Linear(WIDTH, WIDTH).double()

    def sometimes(ids, targets):
        x, targets = front(ids, targets)
        return (extra(x) if torch.equal(ids, chunks[1][0]) else x), targets

    with pytest.raises(ValueError, match=r"front uses `\w+` of a Linear"):
        stream(sometimes, layers, last, [embedding, head], chunks, None, plan)[0].backward()
    assert all(p.grad is None for p in (*layers.parameters(), *embedding.parameters()))


def test_a_chunk_longer_than_the_plan_says():
    """BEFORE: `plan.chunk_tokens` was ignored."""
    layers, embedding, head, chunks, front, last = streamed()
    with pytest.raises(ValueError, match=r"a chunk has 5 tokens, but plan.chunk_tokens is 4"):
        stream(front, layers, last, [embedding, head], chunks, None, Plan(chunk_tokens=4))


def test_a_chunk_changed_in_place_after_forward():
    """BEFORE: recomputed with the new tokens."""
    layers, embedding, head, chunks, front, last = streamed()
    chunks[1] = tuple(t.clone() for t in chunks[1])
    total, _ = stream(front, layers, last, [embedding, head], chunks, None, STREAMED[0])
    chunks[1][0].zero_()
    with pytest.raises(RuntimeError, match="chunk 1 was changed in place between forward and backward"):
        total.backward()


def test_a_streamer_follows_replaced_and_thawed_parameters():
    """BEFORE: a parameter that was thawed or replaced after the Streamer was made got no gradient."""
    layers, embedding, head, chunks, front, last = streamed()
    layers[0].requires_grad_(False)
    run = Streamer(front, layers, last, [embedding, head], STREAMED[0])
    layers[0].requires_grad_(True)
    head.weight = nn.Parameter(head.weight.detach().clone())
    run(chunks, None)[0].backward()
    assert all(p.grad is not None for p in (*layers.parameters(), *head.parameters()))


def test_two_runs_before_a_backward_with_other_weights():
    """Each backward uses the weights of its own forward."""
    layers, x = given()
    plan = PLANS[1]
    right, found = [], []
    sources = [{f"layers.{n}": (f * p.detach()).requires_grad_() for n, p in layers.named_parameters()} for f in (1, 2)]
    for source in sources:
        loss = functional_call(Model(layers, plain, plan), source, (x,))
        right += torch.autograd.grad(loss, [*source.values()])
    losses = [functional_call(Model(layers, with_engine, plan), source, (x,)) for source in sources]
    for loss, source in zip(losses, sources, strict=True):
        found += torch.autograd.grad(loss, [*source.values()])
    assert max(differences(dict(enumerate(found)), dict(enumerate(right))).values()) < BOUND


@pytest.mark.parametrize("plan", PLANS[:2])
def test_a_second_backward_is_refused_in_words(plan):
    """BEFORE: AttributeError: 'NoneType' object has no attribute 'chunks'."""
    layers, x = given()
    loss = loss_of(*checkpoint(layers, x, None, plan))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="Add the losses and call backward once"):
        loss.backward()


def test_second_derivatives_are_refused():
    """BEFORE: the gradients had no graph, so a second derivative lost its terms without a word."""
    layers, x = given()
    loss = loss_of(*checkpoint(layers, x, None, PLANS[1]))
    with pytest.raises(RuntimeError, match="create_graph=True is not supported"):
        torch.autograd.grad(loss, [*layers.parameters()], create_graph=True)


def derivative_by_func(layers, x: Tensor):
    weights = {f"layers.{name}": p.detach() for name, p in layers.named_parameters()}
    return torch.func.grad(lambda w: functional_call(Model(layers, with_engine, PLANS[1]), w, (x,)))(weights)


def derivative_along_weights(layers, x: Tensor):
    with forward_ad.dual_level():
        weights = {
            f"layers.{name}": forward_ad.make_dual(p.detach(), torch.ones_like(p))
            for name, p in layers.named_parameters()
        }
        return functional_call(Model(layers, with_engine, PLANS[1]), weights, (x,))


@pytest.mark.parametrize("derivative", [derivative_by_func, derivative_along_weights])
def test_other_kinds_of_derivatives_are_refused(derivative):
    """BEFORE: forward-mode AD along weights gave no derivative, without a word."""
    layers, x = given()
    with pytest.raises(RuntimeError, match=r"torch\.func transforms .* and forward-mode AD are not supported"):
        derivative(layers, x.detach())


class Inside(nn.Module):
    """A layer that runs another layer under a checkpoint of its own."""

    def __init__(self, layer: nn.Module, run):
        super().__init__()
        self.layer, self.run = layer, run

    def forward(self, x, state):
        return self.run(self.layer, x, state)

    def initial_state(self, x):
        return self.layer.initial_state(x)


def by_engine(layer, x, state):
    y, (after,) = checkpoint([layer], x, [state], Plan("layer", 2, 1))
    return y, after


def by_torch(layer, x, state):
    return torch.utils.checkpoint.checkpoint(layer, x, state, use_reentrant=False)


@every_plan
@pytest.mark.parametrize("inner", [by_engine, by_torch])
def test_checkpoints_inside_a_layer(inner, plan):
    layers, x = given()
    layers[1] = Inside(layers[1], inner)
    found = gradients(with_engine, layers, x, plan)
    layers[1].run = lambda layer, x, state: layer(x, state)
    assert max(differences(found, gradients(plain, layers, x, plan)).values()) < BOUND


@every_plan
@pytest.mark.parametrize("reentrant", [False, True])
def test_the_engine_inside_a_checkpoint_of_torch(reentrant, plan):
    layers, x = given()

    def around(layers, x, plan):
        run = torch.utils.checkpoint.checkpoint
        return run(lambda x: checkpoint(layers, x, None, plan)[0], x, use_reentrant=reentrant), []

    found = gradients(around, layers, x, plan)
    right = gradients(lambda layers, x, plan: (plain(layers, x)[0], []), layers, x, plan)
    assert max(differences(found, right).values()) < BOUND


@every_plan
def test_a_parameter_with_a_hook_that_is_used_outside_as_well(plan):
    """The hook gets the sum of both gradients."""
    layers, x = given()
    weight = layers[0].gru.weight_hh_l0
    weight.register_hook(lambda gradient: gradient.clamp(-0.01, 0.01))

    def scaled(run):
        def run_scaled(layers, x, plan):
            y, after = run(layers, x, plan=plan)
            return y * weight.mean().exp(), after

        return run_scaled

    found, right = (gradients(scaled(run), layers, x, plan) for run in (with_engine, plain))
    assert max(differences(found, right).values()) < BOUND


class Returns(nn.Module):
    """A layer that returns what it is told to."""

    def __init__(self, result, first=(torch.zeros(1),)):
        super().__init__()
        self.result, self.first = result, first

    def forward(self, x, state):
        return self.result(x, state)

    def initial_state(self, x):
        return self.first


Pair = __import__("collections").namedtuple("Pair", "a b")
BROKEN = [
    (Returns(None, {"a": torch.zeros(1)}), r"initial_state\(x\) is a dict"),
    (Returns(None, Pair(torch.zeros(1), torch.zeros(1))), r"is the namedtuple Pair. Use tuple\(state\)"),
    (Returns(None, None), "is None. Use ()"),
    (Returns(None, torch.zeros(1)), r"is a tensor. Use \(state,\)"),
    (Returns(None, (1.0,)), "contains a float"),
    (Returns(lambda x, s: x), r"returned a tensor .*must return \(x, state\)"),
    (Returns(lambda x, s: (x, s, s)), "returned a tuple of 3"),
    (Returns(lambda x, s: (None, s)), "returned None for x"),
    (Returns(lambda x, s: (x[:, 1:], s)), r"x of shape \(2, 4, 8\) for x of shape \(2, 5, 8\)"),
    (Returns(lambda x, s: (x, {"a": s[0]})), "the returned state is a dict"),
    (Returns(lambda x, s: (x, s[0])), "the returned state is a tensor"),
    (Returns(lambda x, s: (x, None)), "the returned state is None"),
    (Returns(lambda x, s: (x, Pair(s[0], s[0]))), "the returned state is the namedtuple Pair"),
    (Returns(lambda x, s: (x, (*s, *s))), "got a state of 1 tensors and returned 2"),
    (Returns(lambda x, s: (x, (s[0].add_(1),))), "changes its input or its state in place"),
    (Returns(lambda x, s: (x, (s[0].add_(1),)), (torch.zeros(1, dtype=torch.int64),)), "in place"),
    (nn.Linear(2, 2), "has no initial_state"),
]


@pytest.mark.parametrize("plan", [PLANS[1], PLANS[6]])
@pytest.mark.parametrize(("layer", "words"), BROKEN)
def test_a_layer_that_breaks_the_contract(layer, words, plan):
    """BEFORE: AttributeError or IndexError deep inside, an error in backward only, or no error at all."""
    layers, x = given()
    with pytest.raises(ValueError, match=r"layer 1 \(\w+\).*" + words):
        checkpoint([layers[0], layer, layers[2]], x, None, plan)


@pytest.mark.parametrize("plan", [PLANS[1], PLANS[6]])
def test_a_layer_that_changes_x_in_place(plan):
    """BEFORE: the caller's x was changed, and the error came in backward."""
    layers, x = given()
    with pytest.raises(ValueError, match=r"layer 0 \(Returns\) changes its input or its state in place"):
        checkpoint([Returns(lambda x, s: (x.add_(1), s)), *layers], x.detach(), None, plan)


@pytest.mark.parametrize(
    ("front", "head", "words"),
    [
        (lambda i, t: torch.zeros(2, 5, 8).double(), None, "front returned a tensor"),
        (None, lambda x, t: x.sum(), r"head returned a tensor .*\(loss,\)"),
        (None, lambda x, t: (x.sum(1),), "Sum it: the loss must be a scalar"),
    ],
)
def test_a_front_or_head_that_breaks_the_contract(front, head, words):
    layers, embedding, linear, chunks, own_front, own_head = streamed()
    with pytest.raises(ValueError, match=words):
        stream(front or own_front, layers, head or own_head, [embedding, linear], chunks, None, STREAMED[0])


class Remembering(nn.Module):
    """A layer that keeps something between calls, each time in another way."""

    def __init__(self, how: str):
        super().__init__()
        self.how = how
        self.norm = nn.BatchNorm1d(WIDTH).double()
        self.power = nn.utils.spectral_norm(nn.Linear(WIDTH, WIDTH).double())

    def forward(self, x, state):
        if self.how == "batch norm":
            return self.norm(x.transpose(1, 2)).transpose(1, 2), state
        if self.how == "spectral norm":
            return self.power(x), state
        self.kept = x.detach()
        return x, state

    def initial_state(self, x):
        return ()


@pytest.mark.parametrize("plan", [PLANS[1], PLANS[6]])
@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("batch norm", r"norm: the buffer `num_batches_tracked` changed in forward.*eval\(\) on the BatchNorm1d"),
        ("spectral norm", "power: the buffer `weight_u` changed in forward"),
        ("attribute", "the attribute `kept` changed in forward"),
    ],
)
def test_a_layer_that_keeps_something_between_calls(how, words, plan):
    """BEFORE: gradients of a function that depends on how often a chunk has run."""
    layers, x = given()
    with pytest.raises(RuntimeError, match=r"layer 1 \(Remembering\).*" + words):
        checkpoint([layers[0], Remembering(how), layers[2]], x, None, plan)


@every_plan
def test_normalizations_are_exact_in_eval_and_weight_norm_always(plan):
    layers, x = given()
    norms = [Remembering(how).eval() for how in ("batch norm", "spectral norm")]
    normed = nn.ModuleList([layers[0], *norms, layers[1]])
    nn.utils.weight_norm(layers[1].gru, "weight_hh_l0")
    assert_exact(normed, x, plan)


@every_plan
def test_random_numbers_of_torch_are_the_same_in_backward(plan):
    """As with torch.utils.checkpoint. Python's and NumPy's random numbers are the caller's responsibility."""
    layers, x = given()
    for layer in layers:
        layer.register_forward_hook(lambda _, __, out: (torch.dropout(out[0], 0.5, True), out[1]))
    random.seed(0)
    y, after = checkpoint(layers, x, None, plan)
    loss = loss_of(y, after)
    seed = torch.initial_seed()
    assert loss.requires_grad
    loss.backward()
    assert seed == torch.initial_seed()
    assert all(p.grad is not None for p in layers.parameters())


def test_a_compiled_model_runs_the_engine_uncompiled(capfd):
    """BEFORE: exact, with a dozen lines "Exception ignored in Stash.__del__"."""
    layers, x = given()
    model = Model(layers, with_engine, PLANS[1])
    right = torch.autograd.grad(model(x), [x, *layers.parameters()])
    found = torch.autograd.grad(torch.compile(model, backend="eager")(x), [x, *layers.parameters()])
    gc.collect()
    assert max(differences(dict(enumerate(found)), dict(enumerate(right))).values()) < BOUND
    assert "ignored" not in capfd.readouterr().err


@every_plan
@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_frozen_layers_and_accumulated_gradients(plan, frozen):
    layers, x = given()
    layers[frozen].requires_grad_(False)
    found = []
    for run in (with_engine, plain):
        layers.zero_grad(set_to_none=True)
        x.grad = None
        for scale in (1, 2):
            loss_of(*run(layers, scale * x, plan=plan)).backward()
        found.append({"x": x.grad, **{name: p.grad for name, p in layers.named_parameters()}})
    assert max(differences(*found).values()) < BOUND


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, nullcontext])
def test_without_gradients_values_are_the_same(mode):
    layers, x = given()
    with mode():
        found, right = with_engine(layers, x)[0], plain(layers, x)[0]
    assert torch.allclose(found, right, rtol=1e-12, atol=1e-12)
