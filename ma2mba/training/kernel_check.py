"""Whether training computes what it should on this machine: the schedules of MA-GC, and the operations of a model."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ma2mba.errors import UserError
from ma2mba.magc import Plan, checkpoint
from ma2mba.model.config import BackboneConfig
from ma2mba.model.mamba2 import Mamba2Layer, State
from ma2mba.ops import backend
from ma2mba.ops.reference.layer import mamba2_layer_reference
from ma2mba.ops.selftest import Result, Row, Sizes, attempt, layer_results, loss_results, relative

TINY = BackboneConfig(d_model=16, n_layer=3, d_state=8, headdim=8, ngroups=2, ssd_block=4, vocab_size=16)
TOKENS = 13
PLANS = (
    Plan("sequence", 4, TINY.n_layer),
    Plan("sequence", 4, 2, "host"),
    Plan("sequence", 2, TINY.n_layer, "host", stash_every=3),
    Plan("layer", 4, 2),
    Plan("layer", 5, 1, "host"),
)
EXACT = 1e-10
"""Measured worst case on a CPU: 2e-15."""
BEYOND_A_BLOCK = 44


class _PlainLayer(Mamba2Layer):
    """In plain torch on every device, without memos: there are no kernels for fp64."""

    def forward(self, x_BTD: Tensor, state: State) -> tuple[Tensor, State]:
        x_BTD, conv_BVW, ssm_BHPN = mamba2_layer_reference(x_BTD, *state, self.weights, self.shape)
        return x_BTD, (conv_BVW, ssm_BHPN)


def schedule_rows(device: torch.device) -> Iterator[Row]:
    """Outputs and every gradient under each of PLANS against plain autograd, in fp64; the worst of them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.ModuleList(_PlainLayer(TINY) for _ in range(TINY.n_layer)).double().to(device)
        x_BTD = torch.randn(2, TOKENS, TINY.d_model, dtype=torch.float64).to(device).requires_grad_()

    def outcome(plan: Plan | None) -> list[Tensor]:
        y_BTD = x_BTD
        if plan:
            y_BTD, _ = checkpoint(layers, x_BTD, None, plan)
        else:
            for layer in layers:
                y_BTD, _ = layer(y_BTD, layer.initial_state(y_BTD))  # type: ignore[operator]
        return [y_BTD, *torch.autograd.grad(y_BTD.sin().sum(), [x_BTD, *layers.parameters()])]

    exact = outcome(None)
    for plan in PLANS:
        case = f"{plan.nesting}, chunks of {plan.chunk_tokens}, {plan.stash}"
        case += f", every {plan.stash_every}" if plan.stash_every > 1 else ""

        def results(plan: Plan = plan) -> list[Result]:
            errors = [relative(found, right) for found, right in zip(outcome(plan), exact, strict=True)]
            return [("output, gradients", max(errors, key=_wrongness), EXACT)]

        yield from attempt("MA-GC", case, results)


def check_operations(device: torch.device, config: BackboneConfig) -> None:
    """Compare the kernels that a model will run on this device with plain torch, on one short chunk; seconds.

    Nothing to do where plain torch runs. Raises UserError with the operation that is wrong most.
    """
    if backend(device) == "torch":
        return
    tokens, c = config.ssd_block + BEYOND_A_BLOCK, config
    sizes = Sizes(c.d_model, c.heads, c.headdim, c.ngroups, c.d_state, c.ssd_block, c.d_conv)
    rows = attempt("layer", f"{tokens} tokens", lambda: layer_results(device, sizes, tokens, batch=1))
    rows += attempt("loss", f"{tokens} positions", lambda: loss_results(device, tokens, c.padded_vocab_size))
    if device.type == "cuda":
        torch.cuda.empty_cache()
    wrong = [row for row in rows if not row.ok]
    if not wrong:
        return
    worst = max(wrong, key=lambda row: _wrongness(row.error))
    said = worst.note or f"relative error {worst.error:.1e}, at most {worst.bound:.1e} is expected"
    raise UserError(
        f"the kernels on {device} disagree with plain torch: {worst.operation}, {worst.what} ({said}; {len(wrong)} of "
        f"{len(rows)} results are wrong); see `ma2mba doctor`, or train in plain torch with MA2MBA_OPS=torch"
    )


def _wrongness(error: float) -> float:
    return math.inf if math.isnan(error) else error
