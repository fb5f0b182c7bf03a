"""The layer axis: steps in order, each of which is recomputed on its own.

This is ordinary gradient checkpointing. With a plan of "layer" nesting the steps are scans over the whole sequence, as
in the paper (arXiv 2411.19460), and the input of each is kept every `Plan.group_layers` layers (l in the paper).
"""

from collections.abc import Sequence
from typing import Any

from ma2mba.magc.cell import Gradients, State, Step
from ma2mba.magc.gradients import GradientSums


class Chain:
    """Runs steps one after the other. The residual is the list of the steps' residuals.

    Backward runs the steps last to first. Each step gets the gradient of its output and returns the gradient of its
    input, which is the output of the step before.
    """

    def __init__(self, steps: Sequence[Step]):
        self.steps = tuple(steps)
        self.depth = sum(step.depth for step in steps)

    def forward(self, values: Any, states: Sequence[State], keep: bool) -> tuple[Any, list[State], Any]:
        final: list[State] = []
        residuals = []
        for step in self.steps:
            values, step_states, residual = step.forward(values, states[len(final) : len(final) + step.depth], keep)
            final += step_states
            residuals.append(residual)
        return values, final, residuals if keep else None

    def residual(self, values: Any, states: Sequence[State]) -> Any:
        """Run all steps but the last: backward runs the last step, and until then its output is unused."""
        last = self.steps[-1]
        split = self.depth - last.depth
        values, _, residuals = Chain(self.steps[:-1]).forward(values, states[:split], keep=True)
        return [*residuals, last.residual(values, states[split:])]

    def backward(
        self, residual: Any, d_values: Any, d_states: Sequence[Gradients], sums: GradientSums
    ) -> tuple[Any, list[Gradients]]:
        d_initial: list[Gradients] = []
        end = self.depth
        for step in reversed(self.steps):
            # pop() frees each residual as soon as its step is done.
            d_values, d_step = step.backward(residual.pop(), d_values, d_states[end - step.depth : end], sums)
            d_initial = d_step + d_initial
            end -= step.depth
        return d_values, d_initial
