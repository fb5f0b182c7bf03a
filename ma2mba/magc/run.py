"""One run of the engine as one autograd function.

The parameters are inputs of the autograd function, so autograd gets the gradient of each parameter once, however many
chunks there are. ZeRO needs this: it reduces a gradient as soon as autograd hands it over.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ma2mba.magc.cell import Cell, State, Step
from ma2mba.magc.chunk_io import ChunkIO
from ma2mba.magc.context import without_cast_cache
from ma2mba.magc.gradients import GradientSums
from ma2mba.magc.weights import Weights, hooks_paused

T = TypeVar("T")


def weights_of(cells: Sequence[Cell]) -> Weights:
    """Return the tensors of all cells as they are now. Front and head share their modules."""
    owned = {owned.module: owned for cell in cells for piece in cell.pieces for owned in piece.modules}
    return Weights([*owned.values()])


@dataclass(frozen=True)
class Run:
    """All that one run of the engine needs besides tensors. `sums` None: make new sums for this backward."""

    root: Step
    cells: Sequence[Cell]
    weights: Weights
    chunk_io: ChunkIO
    zeros_for_unused: bool = False
    sums: GradientSums | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Let the cells compute with the weights of this run while a block runs, and check all gradients' leaves."""
        for cell in self.cells:
            cell.weights = self.weights
        with self.weights.installed() as replaced, without_cast_cache():
            for cell in self.cells:
                cell.examined = not replaced
            yield

    def check(self, when: str) -> None:
        """Raise RuntimeError if weights or chunks have changed; `when` completes the message. Call in `installed`."""
        self.weights.check(when)
        self.chunk_io.check(when)


def apply(run: Run, x: Tensor | None, states: Sequence[State]) -> tuple[Tensor, list[State]]:
    """Return the joined outputs and the final states, with a graph if gradients are enabled."""
    if not torch.is_grad_enabled():
        for cell in run.cells:
            cell.examined = True
        outputs, final, _ = run.root.forward(run.chunk_io.cut(x), states, keep=False)
        return run.chunk_io.join(outputs), final
    if torch._C._are_functorch_transforms_active() or getattr(forward_ad, "_current_level", -1) >= 0:
        raise RuntimeError(
            "torch.func transforms (grad, vmap, jvp) and forward-mode AD are not supported: MA-GC computes gradients "
            "in backward. Use torch.autograd.grad, and torch.func.functional_call for other weights"
        )
    sizes = [len(state) for state in states]
    flat = [t for state in states for t in state]
    y, *flat_final = _MultiAxis.apply(run, sizes, x, *flat, *run.weights.parameters)
    return y, _unflatten(flat_final, sizes)


class _MultiAxis(torch.autograd.Function):
    """apply(run, sizes, x, *states, *parameters) -> y, *final states. `sizes` counts the tensors of each state."""

    @staticmethod
    def forward(ctx: Any, run: Run, sizes: list[int], x: Any, *flat: Tensor) -> tuple[Tensor, ...]:
        states = flat[: sum(sizes)]
        chunks = run.chunk_io.cut(x)
        with run.installed():
            for cell in run.cells:
                cell.examined = False
            outputs, final, ctx.residual = run.root.forward(chunks, _unflatten(states, sizes), keep=True)
            run.check("in forward")
        ctx.run, ctx.sizes = run, sizes
        # Saved only so that torch raises an error for a second backward, and if x or a state was changed in place.
        ctx.save_for_backward(x, *states)
        ctx.set_materialize_grads(False)
        return run.chunk_io.join(outputs), *(t for state in final for t in state)

    @staticmethod
    def backward(ctx: Any, d_y: Tensor | None, *d_final: Tensor | None) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors
        _raise_if_unsupported(ctx.residual)
        run, residual, ctx.residual = ctx.run, ctx.residual, None
        _, _, x_needs_gradient, *_ = ctx.needs_input_grad
        used = run.weights.used
        with run.installed(), hooks_paused(used), run.sums or GradientSums(used) as sums:
            run.check("between forward and backward")
            d_outputs, d_final_states = run.chunk_io.spread(d_y), _unflatten(d_final, ctx.sizes)
            d_chunks, d_states = run.root.backward(residual, d_outputs, d_final_states, sums)
            d_x = run.chunk_io.collect(d_chunks) if x_needs_gradient else None
            run.check("in backward")
            run.chunk_io.done()
            taken = (_or_zeros(sums.take(p), p) if run.zeros_for_unused else sums.take(p) for p in used)
            return None, None, d_x, *(t for state in d_states for t in state), *taken


def _or_zeros(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if gradient is None else gradient


def _raise_if_unsupported(residual: Any) -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "create_graph=True is not supported: MA-GC computes first derivatives only. For second derivatives, run "
            "the layers without the engine"
        )
    if residual is None:
        raise RuntimeError(
            "backward ran a second time, but MA-GC frees its states in the first, also with retain_graph=True. Add the "
            "losses and call backward once, or run the layers again"
        )


def _unflatten(flat: Sequence[T], sizes: Sequence[int]) -> list[tuple[T, ...]]:
    """Cut a flat sequence into tuples of the given sizes."""
    taken = iter(flat)
    return [tuple(next(taken) for _ in range(size)) for size in sizes]
