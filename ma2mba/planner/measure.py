"""Measure what a model's layers cost by running one layer of each kind.

A layer runs alone on a few lengths, the way the engine runs it (`magc.cell.Cell`): on the device it is on, through the
kernels it uses there, or on the meta device, which computes nothing. Costs are close to straight lines in the tokens:
longer chunks are predicted from those lengths.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ma2mba.magc.cell import Cell, Piece, State, Values
from ma2mba.magc.gradients import GradientSums
from ma2mba.planner.cost import Cost, Curve, LayerPrice, Price
from ma2mba.planner.meter import measuring

LENGTHS = (256, 512, 1024, 2048)
SETTINGS = (bool, int, float, str, tuple, torch.dtype, type(None))
"""Types of attributes in which layers of the same class can differ. Dataclasses count as well."""
NUMBER = "layer_idx"
"""The attribute in which libraries number their layers. It makes no difference."""

Inputs = Callable[[int], tuple[Values, list[State]]]


def measure(
    layers: Sequence[nn.Module],
    like_x: Tensor,
    front: Price | None = None,
    head: Price | None = None,
    lengths: Sequence[int] = LENGTHS,
    persistent_sums: bool = False,
) -> Cost:
    """Return the cost of `layers` on like_x's device (meta: nothing is computed). Layers that are alike run once.

    like_x (batch, any, width) has the batch, width and dtype of what flows through the layers. On the meta device,
    `persistent_sums` says that the engine keeps the sums of gradients as on a GPU.
    """
    kinds = first_alike(layers)
    prices = {layer: price_layer(layer, like_x, lengths) for layer in dict.fromkeys(kinds)}
    x_bytes = like_x.element_size() * like_x.shape[0] * like_x.shape[2]
    x = Curve(((0, 0.0), (1, float(x_bytes))))
    return Cost(tuple(prices[layer] for layer in kinds), x, front, head, persistent_sums or like_x.is_cuda)


def first_alike(layers: Sequence[nn.Module]) -> list[nn.Module]:
    """Return, for each layer, the first layer that is like it.

    Layers are alike when their modules' classes, their parameters' shapes, dtypes and requires_grad, and their modules'
    simple attributes are equal.
    """
    first: dict[object, nn.Module] = {}
    return [first.setdefault(_kind(layer), layer) for layer in layers]


def _kind(layer: nn.Module) -> object:
    modules = [(name, type(module), _settings(module)) for name, module in layer.named_modules()]
    tensors = [(name, t.shape, t.dtype, t.device, t.requires_grad) for name, t in layer.named_parameters()]
    return tuple(modules), tuple(tensors)


def _settings(module: nn.Module) -> tuple[tuple[str, str], ...]:
    found = {name: value for name, value in vars(module).items() if isinstance(value, SETTINGS) or is_dataclass(value)}
    return tuple(sorted((name, repr(value)) for name, value in found.items() if name != NUMBER))


def price_layer(layer: nn.Module, like_x: Tensor, lengths: Sequence[int] = LENGTHS) -> LayerPrice:
    """Run one layer on each length. like_x as for `measure`."""
    state, piece, longest = tuple(layer.initial_state(like_x)), Piece.of_layer(layer), max(lengths)  # type: ignore[operator]

    def inputs(tokens: int) -> tuple[Values, list[State]]:
        return (like_x.new_zeros(like_x.shape[0], tokens, like_x.shape[2]),), [state]

    general = price(piece, inputs, lengths)
    nbytes, flops = _memo(piece, *inputs(longest))
    return LayerPrice(
        **vars(general), state=sum(t.nbytes for t in state), memo=nbytes / longest, memo_flops=flops / longest
    )


@torch.no_grad()
def _memo(piece: Piece, values: Values, states: list[State]) -> tuple[int, int]:
    """Return the bytes of a layer's memo and the floating-point operations that it saves; zeros without a memo."""
    with _counting_products() as whole:
        memo = piece.remember(values, states)[2]
    if not isinstance(memo, Tensor):
        return 0, 0
    with _counting_products() as rest:
        piece.recall(values, states, memo)
    return memo.nbytes, whole.get_total_flops() - rest.get_total_flops()


def price(piece: Piece, inputs: Inputs, lengths: Sequence[int] = LENGTHS) -> Price:
    """Run a piece on each length. `inputs(tokens)` returns its values and its layers' states; zeros are enough."""
    runs = {tokens: _run(piece, *inputs(tokens)) for tokens in sorted(lengths)}
    columns = [tuple((tokens, float(run[i])) for tokens, run in runs.items()) for i in range(5)]
    given, saved, forward, backward, flops = map(Curve, columns)
    unique = dict.fromkeys(piece.parameters)
    weights = sum(p.nbytes for p in unique)
    gradients = max(run[5] for run in runs.values())
    return Price(given, saved, forward, backward, flops, gradients, weights, sum_bytes(unique))


def sum_bytes(parameters: Iterable[nn.Parameter]) -> int:
    """Return the bytes of the engine's sums of these parameters' gradients, in fp32 or wider."""
    return sum(p.numel() * max(4, p.element_size()) for p in parameters)


class _CountedGradients(GradientSums):
    """Counts the bytes of the gradients that arrive, and keeps no sums: `Price.sums` has their bytes."""

    nbytes = 0

    def add(self, parameter: Tensor, gradient: Tensor | None) -> None:
        self.nbytes += 0 if gradient is None else gradient.nbytes


def _run(piece: Piece, values: Values, states: list[State]) -> tuple[int, int, int, int, int, int]:
    """Run a piece forward and backward. Return the fields of its `Price` from `inputs` to `gradients`."""
    cell, device, sink = Cell([piece]), _device(values, states), _CountedGradients(piece.parameters)
    with sink:
        if device.type == "cuda":  # kernels are compiled and tuned at their first use, which takes memory
            cell.backward(cell.residual(values, states), *_seeds(cell, values, states), sink)
            sink.nbytes = 0
        with _counting_products() as counter, measuring(device) as meter, torch.no_grad():
            kept = cell.run(values, states)
            forward = meter.peak
        del kept
        saved = _saved(cell, values, states, device)
        d_values, d_states = _seeds(cell, values, states)
        residual = cell.residual(values, states)
        with measuring(device) as meter:
            cell.backward(residual, d_values, d_states, sink)
        given = sum(t.nbytes for t in values)
        return given, saved, forward, meter.peak, counter.get_total_flops(), sink.nbytes


def _counting_products() -> FlopCounterMode:
    """Return a counter that also counts sums of products with a dtype argument, at which torch 2.11's formula fails."""

    def add_product(_: Any, a: Sequence[int], b: Sequence[int], *dtype: Any, **others: Any) -> int:
        return 2 * a[0] * a[1] * b[1]

    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm: add_product})


def _saved(cell: Cell, values: Values, states: list[State], device: torch.device) -> int:
    """Return the bytes that are alive after a forward with a graph, parameters and inputs excluded."""
    values = tuple(t.detach().requires_grad_(t.is_floating_point()) for t in values)
    states = [tuple(t.detach().requires_grad_() for t in state) for state in states]
    with measuring(device) as meter, torch.enable_grad():
        kept = cell.run(values, states)
        live = meter.live
    del kept
    return live


def _seeds(
    cell: Cell, values: Values, states: list[State]
) -> tuple[tuple[Tensor | None, ...], list[tuple[Tensor | None, ...]]]:
    """Return gradients of the cell's outputs, as backward will receive them."""
    with torch.no_grad(), measuring(_device(values, states)):
        values_out, states_out = cell.run(values, states)

    def seed(tensor: Tensor) -> Tensor | None:
        return torch.ones_like(tensor) if tensor.is_floating_point() else None

    return tuple(map(seed, values_out)), [tuple(map(seed, state)) for state in states_out]


def _device(values: Values, states: Sequence[State]) -> torch.device:
    return next(t.device for t in (*values, *(t for state in states for t in state)))
