"""What rounding A_log, dt_bias and D to bf16 costs a Mamba-2 layer: relative errors from fp64 at up to 2^20 tokens.

One layer of small width reads one sequence in chunks, on the CPU in plain PyTorch. Its decays are like a trained
layer's: A is log-uniform in [0.1, 32], the step size at dt = 0 log-uniform in [1e-4, 0.3], so that heads remember from
one token to 100,000. After 2^12, 2^14 ... tokens: the error of the layer's output over the last chunk (without the
residual), of the state after it, and of the worst head's state.

    python benchmarks/precision.py [--tokens 1048576] [--seed 0]
"""

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ma2mba.ops.reference.layer import mamba2_layer_reference
from ma2mba.ops.selftest import relative
from ma2mba.ops.types import LayerShape, LayerWeights

WIDTH, HEADS, HEADDIM, STATE, TAPS, CHUNK = 128, 16, 16, 32, 4, 4096
SHAPE = LayerShape(HEADDIM, ngroups=1, d_state=STATE, block=64, eps=1e-5)
RECURRENT = ("A_log_H", "dt_bias_H", "D_H")
ALL = tuple(field.name for field in fields(LayerWeights))
OTHERS = tuple(name for name in ALL if name not in RECURRENT)


@dataclass
class Variant:
    """The layer with rounded weights, and its state after the tokens so far."""

    name: str
    weights: LayerWeights
    conv_1VW: Tensor
    ssm_1HPN: Tensor

    def read(self, x_1TD: Tensor) -> Tensor:
        """Advance by the tokens of x, and return what the layer adds to the residual."""
        x_1TD = x_1TD.to(self.ssm_1HPN.dtype)
        y_1TD, self.conv_1VW, self.ssm_1HPN = mamba2_layer_reference(
            x_1TD, self.conv_1VW, self.ssm_1HPN, self.weights, SHAPE
        )
        return y_1TD - x_1TD


def draw_weights() -> LayerWeights:
    """Return fp32 weights."""
    inner, keys = HEADS * HEADDIM, STATE
    channels = inner + 2 * keys
    step_H = log_uniform(1e-4, 0.3)
    in_proj_XD = torch.randn(inner + channels + HEADS, WIDTH) / math.sqrt(WIDTH)
    return LayerWeights(
        norm_D=torch.rand(WIDTH) + 0.5,
        in_proj_XD=in_proj_XD,
        conv_V1W=(torch.rand(channels, 1, TAPS) * 2 - 1) / math.sqrt(TAPS),
        conv_bias_V=torch.randn(channels) * 0.1,
        dt_bias_H=step_H + torch.log(-torch.expm1(-step_H)),
        A_log_H=log_uniform(0.1, 32).log(),
        D_H=1 + 0.5 * torch.randn(HEADS),
        gated_norm_I=torch.rand(inner) + 0.5,
        out_proj_DI=torch.randn(WIDTH, inner) / math.sqrt(inner),
    )


def log_uniform(low: float, high: float) -> Tensor:
    return torch.exp(math.log(low) + torch.rand(HEADS) * math.log(high / low))


def rounded(weights: LayerWeights, names: tuple[str, ...]) -> LayerWeights:
    """Return the weights, `names` of them in bf16."""
    return replace(weights, **{name: getattr(weights, name).bfloat16() for name in names})


def widened(weights: LayerWeights, dtype: torch.dtype) -> LayerWeights:
    return LayerWeights(*(t.to(dtype) for t in weights.tensors()))


def variants(weights: LayerWeights) -> list[Variant]:
    """Return the exact layer, and the layers that are compared with it."""
    high = torch.float32
    chosen = {
        "fp64": widened(weights, torch.float64),
        "a: fp32": weights,
        "b: bf16, but A_log, dt_bias and D in fp32": rounded(weights, OTHERS),
        "c: bf16": rounded(weights, ALL),
        "fp32, A_log, dt_bias and D rounded": widened(rounded(weights, RECURRENT), high),
        **{f"fp32, {name[:-2]} rounded": widened(rounded(weights, (name,)), high) for name in RECURRENT},
    }
    made = []
    for name, w in chosen.items():
        conv_1VW = w.in_proj_XD.new_zeros(1, len(w.conv_bias_V), TAPS - 1)
        wide = torch.promote_types(w.in_proj_XD.dtype, high)
        made.append(Variant(name, w, conv_1VW, torch.zeros(1, HEADS, HEADDIM, STATE, dtype=wide)))
    return made


@torch.no_grad()
def measure(tokens: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield one row for each number of tokens and each layer."""
    torch.manual_seed(seed)
    exact, *others = variants(draw_weights())
    for chunk in range(1, tokens // CHUNK + 1):
        x_1TD = torch.randn(1, CHUNK, WIDTH)
        y_1TD = exact.read(x_1TD)
        for layer in others:
            error = relative(layer.read(x_1TD).double(), y_1TD)
            if math.log2(chunk) % 2 == 0:
                state, truth = layer.ssm_1HPN[0].double(), exact.ssm_1HPN[0]
                worst = max(relative(found, right) for found, right in zip(state, truth, strict=True))
                numbers = {"output": error, "state": relative(state, truth), "worst_head": worst}
                yield {"tokens": chunk * CHUNK, "layer": layer.name, "seed": seed} | numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--tokens", type=int, default=1 << 20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for row in measure(options.tokens, options.seed):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
