"""What the GPU benchmarks share: the machine's facts, a language model as a streamed loss, one step, time and memory.

B batch, T tokens of a chunk, D model width, M rows, S tokens of the sequence.
"""

import gc
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ma2mba.magc import Plan, Streamer
from ma2mba.model.backbone import LanguageModel
from ma2mba.model.sizes import SIZES
from ma2mba.ops import backend, cross_entropy_sum

DEVICE = torch.device("cuda")
GIB = 2**30
EAGER_TOKENS = 8192
"""Chunks of so many tokens keep a GPU busy without graphs."""
VOCABULARY = 50277


def machine() -> dict[str, str]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
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
        "commit": commit.stdout.strip() or "unknown",
        **versions,
    }


def language_model(size: str) -> LanguageModel:
    """Random weights in bf16, made where they stay."""
    torch.manual_seed(0)
    with torch.device(DEVICE):
        return LanguageModel(SIZES[size]).to(torch.bfloat16)


def streamer(model: LanguageModel, plan: Plan) -> Streamer:
    """The sum of the cross-entropies of every token, chunk by chunk."""
    backbone = model.backbone

    def front(ids_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
        return backbone.embedding(ids_BT).float(), targets_BT

    def head(x_BTD: Tensor, targets_BT: Tensor) -> tuple[Tensor]:
        x_MD = backbone.norm_f(x_BTD).flatten(0, 1)
        return (cross_entropy_sum(x_MD, model.lm_head.weight, targets_BT.flatten()),)

    return Streamer(front, backbone.layers, head, [backbone.embedding, backbone.norm_f, model.lm_head], plan)


def fast_plan(model: LanguageModel, chunk: int, memos: int = 0) -> Plan:
    """States in pinned host memory; short chunks are captured."""
    graphs = chunk < EAGER_TOKENS
    return Plan("sequence", chunk, len(model.backbone.layers), "host", memo_chunks=memos, graphs=graphs)


class RandomTokens(Sequence[tuple[Tensor, Tensor]]):
    """Chunks of random tokens and the tokens that follow them; made when asked for."""

    def __init__(self, tokens: int, chunk: int, batch: int = 1):
        generator = torch.Generator(DEVICE).manual_seed(tokens)
        self.ids_BS = torch.randint(0, VOCABULARY, (batch, tokens + 1), device=DEVICE, generator=generator)
        self.tokens, self.chunk = tokens, chunk

    def __len__(self) -> int:
        return -(-self.tokens // self.chunk)

    def __getitem__(self, i):
        start, stop = i * self.chunk, min((i + 1) * self.chunk, self.tokens)
        return self.ids_BS[:, start:stop], self.ids_BS[:, start + 1 : stop + 1]


def step(run: Streamer, model: LanguageModel, tokens: int) -> float:
    """Forward and backward over random tokens; the mean cross-entropy."""
    like_x_BTD = torch.empty(1, 0, model.lm_head.in_features, device=DEVICE)
    model.zero_grad(set_to_none=True)
    states = [layer.initial_state(like_x_BTD) for layer in model.backbone.layers]
    loss, _ = run(RandomTokens(tokens, run.plan.chunk_tokens), states)
    (loss / tokens).backward()
    return loss.item() / tokens


def timed(run: Callable[[], float], tokens: int, repeats: int) -> dict[str, Any]:
    """Median speed, and the most memory held: what captured graphs use is reserved and not seen as allocated."""
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
    """Give back gradients, and what is no longer used."""
    model.zero_grad(set_to_none=True)
    gc.collect()
    torch.cuda.empty_cache()
