"""Shared code of the GPU benchmarks: facts about the machine, a language model with a streamed loss, and timing.

B batch, T tokens of a chunk, D model width, M rows (B * T), S tokens of the sequence.
"""

import gc
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ma2mba.magc import Plan, Streamer
from ma2mba.model.backbone import LanguageModel
from ma2mba.model.sizes import SIZES
from ma2mba.ops import backend, cross_entropy_sum
from ma2mba.planner.memory import GIB

DEVICE = torch.device("cuda")
EAGER_TOKENS = 8192
"""Chunks of at least this many tokens keep a GPU busy without CUDA graphs."""
VOCABULARY = 50277


def machine() -> dict[str, str]:
    """Return the GPU, the operations that run on it, and the versions of the code and its libraries."""
    versions = {}
    for name in ("triton", "mamba_ssm", "causal_conv1d", "deepspeed"):
        module = sys.modules.get(name)
        versions[name] = getattr(module, "__version__", "not used")
    return {
        "gpu": torch.cuda.get_device_name(),
        "gpu_gib": f"{torch.cuda.get_device_properties(0).total_memory / GIB:.1f}",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "operations": backend(DEVICE),
        "commit": commit(),
        **versions,
    }


def commit() -> str:
    """Return the short hash of the checked-out commit, "unknown" outside a git checkout."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def language_model(size: str) -> LanguageModel:
    """Return a language model of this size with random bf16 weights, created on DEVICE."""
    torch.manual_seed(0)
    with torch.device(DEVICE):
        return LanguageModel(SIZES[size]).to(torch.bfloat16)


def streamer(model: LanguageModel, plan: Plan, layers: Sequence[torch.nn.Module] | None = None) -> Streamer:
    """Return a streamer of the summed cross-entropy of all tokens. `layers` replaces the layers of the model."""
    backbone, weight = model.backbone, model.lm_head.weight
    residual_dtype = torch.promote_types(weight.dtype, torch.float32)

    def front(ids_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
        return backbone.embedding(ids_BT).to(residual_dtype), targets_BT

    def head(x_BTD: Tensor, targets_BT: Tensor) -> tuple[Tensor]:
        x_MD = backbone.norm_f(x_BTD).flatten(0, 1)
        return (cross_entropy_sum(x_MD, weight, targets_BT.flatten()),)

    ends = [backbone.embedding, backbone.norm_f, model.lm_head]
    return Streamer(front, backbone.layers if layers is None else layers, head, ends, plan)


def fast_plan(model: LanguageModel, chunk: int, memos: int = 0) -> Plan:
    """Return a plan that keeps states in pinned host memory and captures short chunks as CUDA graphs."""
    graphs = chunk < EAGER_TOKENS
    return Plan("sequence", chunk, len(model.backbone.layers), "host", memo_chunks=memos, graphs=graphs)


def initial_states(model: LanguageModel) -> list[Any]:
    """Return one initial recurrent state per layer, for a batch of one row."""
    like_x_BTD = torch.empty(1, 0, model.lm_head.in_features, device=model.lm_head.weight.device)
    return [layer.initial_state(like_x_BTD) for layer in model.backbone.layers]  # type: ignore[operator]


class RandomTokens(Sequence[tuple[Tensor, Tensor]]):
    """Chunks (ids_BT, targets_BT) of random tokens. A chunk is sliced when it is read."""

    def __init__(self, tokens: int, chunk: int):
        generator = torch.Generator(DEVICE).manual_seed(tokens)
        self.ids_BS = torch.randint(0, VOCABULARY, (1, tokens + 1), device=DEVICE, generator=generator)
        self.tokens, self.chunk = tokens, chunk

    def __len__(self) -> int:
        return -(-self.tokens // self.chunk)

    def __getitem__(self, i):
        start, stop = i * self.chunk, min((i + 1) * self.chunk, self.tokens)
        return self.ids_BS[:, start:stop], self.ids_BS[:, start + 1 : stop + 1]


def mean_loss(run: Streamer, tokens: int, states: list[Any]) -> Tensor:
    """Return the mean cross-entropy over `tokens` random tokens, ready for backward."""
    total, _ = run(RandomTokens(tokens, run.plan.chunk_tokens), states)
    return total / tokens


def step(run: Streamer, model: LanguageModel, tokens: int) -> float:
    """Run forward and backward over random tokens; return the mean cross-entropy."""
    model.zero_grad(set_to_none=True)
    states = initial_states(model)
    loss = mean_loss(run, tokens, states)
    loss.backward()
    return loss.item()


def timed(run: Callable[[], float], tokens: int, repeats: int) -> dict[str, Any]:
    """Return the median speed of `run`, the seconds of each repeat, the peak memory and the last loss.

    Allocated memory does not include the memory of CUDA graphs. Reserved memory does.
    """
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        began = time.perf_counter()
        loss = run()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return {
        "tokens": tokens,
        "tokens_per_second": round(tokens / statistics.median(seconds)),
        "seconds": [round(s, 3) for s in seconds],
        "reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 2),
        "allocated_gib": round(torch.cuda.max_memory_allocated() / GIB, 2),
        "loss": loss,
    }


def release(model: torch.nn.Module) -> None:
    """Free the model's gradients and all cached device memory."""
    model.zero_grad(set_to_none=True)
    gc.collect()
    torch.cuda.empty_cache()
