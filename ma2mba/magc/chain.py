"""The layer axis: steps one after the other, keeping what each of them needs to be recomputed."""

from collections.abc import Sequence
from typing import Any

from ma2mba.magc.cell import Gradients, State, Step
from ma2mba.magc.gradients import GradientSums


class Chain:
    """Runs steps in order. Its steps are cells (sequence nesting) or scans of cells (layer nesting)."""

    def __init__(self, steps: Sequence[Step]):
        self.steps = tuple(steps)
        self.depth = sum(step.depth for step in steps)

    def forward(self, values: Any, states: Sequence[State], keep: bool) -> tuple[Any, list[State], Any]:
        after: list[State] = []
        residuals = []
        for step in self.steps:
            values, step_states, residual = step.forward(values, states[len(after) : len(after) + step.depth], keep)
            after += step_states
            residuals.append(residual)
        return values, after, residuals if keep else None

    def residual(self, values: Any, states: Sequence[State]) -> Any:
        """As forward, but the last step need not run: backward will."""
        last = self.steps[-1]
        split = self.depth - last.depth
        values, _, residuals = Chain(self.steps[:-1]).forward(values, states[:split], keep=True)
        return [*residuals, last.residual(values, states[split:])]

    def backward(
        self, residual: Any, d_values: Any, d_states: Sequence[Gradients], sink: GradientSums
    ) -> tuple[Any, list[Gradients]]:
        d_before: list[Gradients] = []
        end = self.depth
        for step in reversed(self.steps):
            d_values, d_step = step.backward(residual.pop(), d_values, d_states[end - step.depth : end], sink)
            d_before = d_step + d_before
            end -= step.depth
        return d_values, d_before
