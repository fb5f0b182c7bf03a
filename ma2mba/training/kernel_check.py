"""Verify on this machine the schedules of MA-GC, and the kernels that a model trains with."""

import inspect
import logging
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from ma2mba.errors import UserError
from ma2mba.magc import Plan, checkpoint
from ma2mba.model.layer import RecurrentLayer
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.ops import backend, kernel_cache
from ma2mba.ops.kernel_cache import KernelCache
from ma2mba.ops.selftest import Result, Row, attempt, loss_results, relative

LAYERS, WIDTH, TOKENS = 3, 16, 13
PLANS = (
    Plan("sequence", 4, LAYERS),
    Plan("sequence", 4, 2, "host"),
    Plan("sequence", 2, LAYERS, "host", stash_every=3),
    Plan("layer", 4, 2),
    Plan("layer", 5, 1, "host"),
)
EXACT = 1e-10
"""Largest accepted relative error; measured worst case on a CPU: 6e-16."""
POSITIONS = 300
CODE = (Path(__file__), Path(inspect.getfile(kernel_cache)).parent)
"""The code that `check_operations` runs, with the file of the layer's class."""
OWN = "ma2mba."
log = logging.getLogger(__name__)


class _TinyLayer(nn.Module):
    """A recurrent layer in plain torch: a difference to the token before, then a running mean with learned decays.

    It has two states of different shapes, one of them not contiguous, as real layers have.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.decay_D = nn.Parameter(torch.rand(WIDTH))

    def forward(self, x_BTD: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        before_BD1, mean_BD = state
        u_BTD = self.mix(x_BTD)
        shifted_BTD = torch.cat([before_BD1.transpose(1, 2), u_BTD], dim=1)
        means = []
        for change_BD in (u_BTD.sin() - shifted_BTD[:, :-1]).unbind(1):
            mean_BD = torch.lerp(change_BD, mean_BD, self.decay_D.sigmoid())
            means.append(mean_BD)
        return x_BTD + torch.stack(means, dim=1), (shifted_BTD[:, -1:].transpose(1, 2), mean_BD)

    def initial_state(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        return x_BTD.new_zeros(len(x_BTD), 1, WIDTH).transpose(1, 2), x_BTD.new_zeros(len(x_BTD), WIDTH)


def schedule_rows(device: torch.device) -> Iterator[Row]:
    """Compare outputs and all gradients under each of PLANS with plain autograd, in fp64. Yield the worst of a plan."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.ModuleList(_TinyLayer() for _ in range(LAYERS)).double().to(device)
        x_BTD = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64).to(device).requires_grad_()

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


def check_operations(device: torch.device, model: VideoMa2mba) -> None:
    """Compare the kernels that a model will run on this device with plain torch, on one short chunk. Takes seconds.

    Does nothing where plain torch runs, and where the same comparison has passed on this GPU with the same kernels
    (`ma2mba.ops.kernel_cache`). Raises UserError that names the operation with the largest error.
    """
    if backend(device) == "torch":
        return
    known, test = KernelCache.of(device), {}
    if known and _is_own(model.layers[0]):
        code = (*CODE, Path(inspect.getfile(type(model.layers[0]))))
        test = kernel_cache.describe_test(device, model.config.language_model.model_dump_json(), code)
        if known.has_passed(test):
            log.debug("kernels: verified on this GPU before (%s)", known.folder)
            return
    _compare(device, model)
    if known and test:
        known.note_passed(test)


def _is_own(layer: RecurrentLayer) -> bool:
    """Return True for a layer of this package. What the kernels of other layers depend on is unknown."""
    return type(layer).__module__.startswith(OWN)


def _compare(device: torch.device, model: VideoMa2mba) -> None:
    vocabulary = model.config.language_model.padded_vocab_size
    rows = model.layers[0].check_kernels(device)
    rows += attempt("loss", f"{POSITIONS} positions", lambda: loss_results(device, POSITIONS, vocabulary))
    if device.type == "cuda":
        torch.cuda.empty_cache()
    wrong = [row for row in rows if not row.ok]
    if not wrong:
        return
    worst = max(wrong, key=lambda row: _wrongness(row.error))
    reason = worst.note or f"relative error {worst.error:.1e}, expected at most {worst.bound:.1e}"
    raise UserError(
        f"the kernels on {device} disagree with plain torch: {worst.operation}, {worst.what} ({reason}; "
        f"{len(wrong)} of {len(rows)} results are wrong). Run `ma2mba doctor`, or train in plain torch with "
        "MA2MBA_OPS=torch"
    )


def _wrongness(error: float) -> float:
    return math.inf if math.isnan(error) else error
