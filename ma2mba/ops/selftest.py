"""Compare the operations of a device with plain torch in fp64 on the same inputs (`ma2mba doctor`).

GPU kernels run in bf16, as in training. Their error may be twice the error of plain torch in bf16. Where the backend is
plain torch, it runs in fp32, and a fixed bound applies.

B batch, T tokens, M positions, D model width, V vocabulary, H heads, P head width, N state size, W taps less one.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ma2mba.ops.backend import backend
from ma2mba.ops.layer import mamba2_layer, mamba2_layer_product
from ma2mba.ops.loss import cross_entropy_sum
from ma2mba.ops.reference.layer import mamba2_layer_reference
from ma2mba.ops.reference.loss import cross_entropy_sum_reference
from ma2mba.ops.step import open_step
from ma2mba.ops.types import LayerShape, LayerWeights

KERNELS_FLOOR, SCATTER = 3e-3, 2e-2
"""The least bound for kernels, whatever the error of plain torch in bf16. A layer's bound is larger by SCATTER over the
square root of the number of elements, because the errors of few roundings vary. Measured: 1.8e-3 for the states of one
token (plain torch in bf16: 7e-4), 8.8e-3 for the gradient of D of 8 heads for one token (plain torch: 3.6e-3)."""
FP32_BOUND = 1e-4
"""Measured worst case on a CPU: 3.6e-5 for the gradient of A_log, 2.6e-6 for anything else."""
STEPS = 5
"""Tokens that the comparison of the one-token step reads: more than the convolution's state holds."""
RESULTS = ("output", "convolution's state", "scan's state")
WEIGHTS = tuple(name.rpartition("_")[0] for name in LayerWeights.__dataclass_fields__)
INPUTS = ("x", "convolution's first state", "scan's first state", *WEIGHTS)
LayerFunction = Callable[..., tuple[Tensor, Tensor, Tensor]]
Result = tuple[str, float, float]
"""What was compared, its error, and the largest accepted error."""


@dataclass(frozen=True)
class Row:
    """One comparison. `error` is the norm of the difference over the norm of the exact result, NaN if the operation
    raised an exception; `note` then holds the exception."""

    operation: str
    case: str
    what: str
    error: float
    bound: float
    note: str = ""

    @property
    def ok(self) -> bool:
        return self.error <= self.bound  # False for NaN


@dataclass(frozen=True)
class Sizes:
    """The sizes of a layer. Kernels are tuned for a number of heads, head width, head groups, state size and block."""

    width: int = 256
    heads: int = 8
    headdim: int = 64
    ngroups: int = 1
    d_state: int = 128
    block: int = 256
    taps: int = 4

    @property
    def shape(self) -> LayerShape:
        return LayerShape(self.headdim, self.ngroups, self.d_state, self.block, 1e-5)


CASES = ((1, 1, Sizes()), (2, 3, Sizes(ngroups=2)), (300, 2, Sizes()), (513, 1, Sizes()))
"""Tokens, batch, sizes: fewer tokens than taps, head groups, an incomplete block, several blocks."""
POSITIONS = (1000, 4200)
"""Positions of the loss: less than a block, whose gradient the GPU kernel keeps, and more than one block."""


def self_test(device: torch.device) -> Iterator[Row]:
    """Yield the rows of every case. An operation that raises an exception gives one row that is not ok."""
    for tokens, batch, sizes in CASES:
        case = f"{batch} x {tokens} tokens, head groups: {sizes.ngroups}"
        yield from attempt("layer", case, lambda: layer_results(device, sizes, tokens, batch))  # noqa: B023
        yield from attempt("step", case, lambda: step_results(device, sizes, batch))  # noqa: B023
        if backend(device) == "triton":
            yield from attempt("layer recalled", case, lambda: layer_results(device, sizes, tokens, batch, _recalled))  # noqa: B023
    for positions in POSITIONS:
        yield from attempt("loss", f"{positions} positions", lambda: loss_results(device, positions, 5032))  # noqa: B023


def attempt(operation: str, case: str, results: Callable[[], Sequence[Result]]) -> list[Row]:
    """Return the results as rows, or one row with the exception."""
    try:
        return [Row(operation, case, *result) for result in results()]
    except Exception as error:  # whatever a compiler or a driver may raise
        note = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        return [Row(operation, case, "does not run", math.nan, 0.0, note)]


def layer_results(
    device: torch.device, sizes: Sizes, tokens: int, batch: int, run: LayerFunction | None = None
) -> list[Result]:
    """Compare `mamba2_layer`: output, both final states, and the gradients of x, both first states and all weights."""
    kernels = backend(device) == "triton"
    dtype = torch.bfloat16 if kernels else torch.float32
    given = [t.to(device) for t in layer_inputs(sizes, tokens, batch, dtype)]
    exact = layer_outcome(mamba2_layer_reference, given, sizes, torch.float64)
    found = layer_outcome(run or mamba2_layer, given, sizes, dtype)
    bounds = [FP32_BOUND] * len(exact)
    if kernels:
        plain = layer_outcome(mamba2_layer_reference, given, sizes, dtype)
        bounds = _bounds(plain, exact, SCATTER)
    names = (*RESULTS, *(f"gradient of {name}" for name in INPUTS))
    errors = [relative(f, e) for f, e in zip(found, exact, strict=True)]
    return list(zip(names, errors, bounds, strict=True))


def step_results(device: torch.device, sizes: Sizes, batch: int) -> list[Result]:
    """Compare STEPS calls of `open_step` with a layer that reads as many tokens: output, and both final states."""
    kernels = backend(device) == "triton"
    dtype = torch.bfloat16 if kernels else torch.float32
    given = [t.to(device) for t in layer_inputs(sizes, STEPS, batch, dtype)]
    x_BTD, conv_BVW, ssm_BHPN, *tensors = given
    exact = mamba2_layer_reference(x_BTD, conv_BVW, ssm_BHPN, LayerWeights(*tensors), sizes.shape)
    weights, high = LayerWeights(*(t.to(dtype) for t in tensors)), torch.float32
    x_BTD, conv_BVW, ssm_BHPN = x_BTD.to(high), conv_BVW.to(dtype), ssm_BHPN.to(high)
    step = open_step(weights, sizes.shape, batch)
    for row in range(batch):
        step.load(row, (conv_BVW[row : row + 1], ssm_BHPN[row : row + 1]))
    y_BTD = torch.stack([step(x_BTD[:, t].clone()).clone() for t in range(STEPS)], dim=1)
    after = zip(*(step.state(row) for row in range(batch)), strict=True)
    found = (y_BTD, *(torch.cat(states) for states in after))
    bounds = [FP32_BOUND] * len(exact)
    if kernels:
        bounds = _bounds(mamba2_layer_reference(x_BTD, conv_BVW, ssm_BHPN, weights, sizes.shape), exact, SCATTER)
    errors = [relative(f, e) for f, e in zip(found, exact, strict=True)]
    return list(zip(RESULTS, errors, bounds, strict=True))


def _recalled(
    x_BTD: Tensor, conv_BVW: Tensor, ssm_BHPN: Tensor, weights: LayerWeights, shape: LayerShape
) -> tuple[Tensor, Tensor, Tensor]:
    """`mamba2_layer` as backward recomputes it, with the memo of the forward."""
    with torch.no_grad():
        product_BTD = mamba2_layer_product(x_BTD, conv_BVW, ssm_BHPN, weights, shape)[3]
    return mamba2_layer(x_BTD, conv_BVW, ssm_BHPN, weights, shape, product_BTD)


def layer_inputs(sizes: Sizes, tokens: int, batch: int, dtype: torch.dtype) -> list[Tensor]:
    """Return x, both states, and the weights in the order of LayerWeights.

    All are fp64 tensors; their values are rounded to `dtype` where a model has that dtype, else to fp32.
    """
    generator = torch.Generator().manual_seed(tokens)
    inner, width, heads = sizes.heads * sizes.headdim, sizes.width, sizes.heads
    channels = inner + 2 * sizes.ngroups * sizes.d_state

    def draw(*shape: int, scale: float = 1.0, at: float = 0.0, to: torch.dtype = dtype) -> Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale + at).to(to).double()

    return [
        draw(batch, tokens, width, to=torch.float32),
        draw(batch, channels, sizes.taps - 1),
        draw(batch, heads, sizes.headdim, sizes.d_state, to=torch.float32),
        draw(width, scale=0.1, at=1),
        draw(inner + channels + heads, width, scale=width**-0.5),
        draw(channels, 1, sizes.taps, scale=0.5),
        draw(channels, scale=0.1),
        draw(heads, scale=0.5, at=-3),
        (torch.rand(heads, generator=generator, dtype=torch.float64) * 15 + 1).log().to(dtype).double(),
        draw(heads),
        draw(inner, scale=0.1, at=1),
        draw(width, inner, scale=inner**-0.5),
    ]


def layer_outcome(run: LayerFunction, given: Sequence[Tensor], sizes: Sizes, dtype: torch.dtype) -> list[Tensor]:
    """Return a layer's outputs, and the gradients of its inputs for random gradients of the outputs.

    The weights are in `dtype`.
    """
    high = torch.promote_types(dtype, torch.float32)
    dtypes = [high, dtype, high] + [dtype] * (len(given) - 3)
    tensors = [t.to(d).detach().clone().requires_grad_() for t, d in zip(given, dtypes, strict=True)]
    outputs = run(*tensors[:3], LayerWeights(*tensors[3:]), sizes.shape)
    generator = torch.Generator().manual_seed(0)
    seeds = [torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out) for out in outputs]
    return [*outputs, *torch.autograd.grad(outputs, tensors, seeds)]


def loss_results(device: torch.device, positions: int, vocabulary: int, width: int = 256) -> list[Result]:
    """Compare `cross_entropy_sum`: the sum, and the gradients of x and of the head's weight."""
    kernels = backend(device) == "triton"
    dtype = torch.bfloat16 if kernels else torch.float32
    generator = torch.Generator().manual_seed(positions)
    x_MD = torch.randn(positions, width, generator=generator).to(device, dtype)
    weight_VD = (torch.randn(vocabulary, width, generator=generator) * 0.3).to(device, dtype)
    targets_M = torch.randint(0, vocabulary, (positions,), generator=generator).to(device)
    exact, found, plain = (
        _loss_outcome(run, x_MD.to(to), weight_VD.to(to), targets_M)
        for run, to in (
            (cross_entropy_sum_reference, torch.float64),
            (cross_entropy_sum, dtype),
            (cross_entropy_sum_reference, dtype),
        )
    )
    bounds = [FP32_BOUND] * len(exact)
    if kernels:
        bounds = _bounds(plain, exact)
    errors = [relative(f, e) for f, e in zip(found, exact, strict=True)]
    return list(zip(("sum", "gradient of x", "gradient of the weight"), errors, bounds, strict=True))


def _loss_outcome(run: Callable[..., Tensor], x_MD: Tensor, weight_VD: Tensor, targets_M: Tensor) -> list[Tensor]:
    x_MD, weight_VD = x_MD.detach().clone().requires_grad_(), weight_VD.detach().clone().requires_grad_()
    loss = run(x_MD, weight_VD, targets_M)
    return [loss, *torch.autograd.grad(loss * 0.003, [x_MD, weight_VD])]


def _bounds(plain: Sequence[Tensor], exact: Sequence[Tensor], scatter: float = 0.0) -> list[float]:
    pairs = zip(plain, exact, strict=True)
    return [max(2 * relative(p, e), KERNELS_FLOOR + scatter / math.sqrt(e.numel())) for p, e in pairs]


def relative(found: Tensor, right: Tensor) -> float:
    """Return the norm of the difference over the norm of `right`. NaN in either tensor gives NaN."""
    right = right.double()
    return ((found.double() - right).norm() / right.norm().clamp(min=1e-300)).item()
