"""One long text shared by the GPUs of a host: torchrun --nproc-per-node N benchmarks/sequence_parallel.py [--out FILE]

Checks first: every parameter's gradient, computed by all ranks together and by rank 0 alone, against the same in higher
precision (fp32; on a CPU the model is in fp32 and compared in fp64), root mean square over DRAWS texts, for how far
rounding scatters differs from text to text. Then times one step (forward, backward, mean cross-entropy over every
token, gradients summed over the ranks) by rank 0 alone, its chunks captured as CUDA graphs, and by all ranks. A chunk
has `--chunk` tokens on each GPU, so N times as many when N share it. Prints one JSON object.
`--size tiny --device cpu` runs anywhere and measures nothing of interest.

B batch, T tokens of a rank's part of a chunk, D model width.
"""

import argparse
import gc
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu import EAGER_TOKENS, GIB
from ma2mba.magc import Plan, Streamer
from ma2mba.model import sizes
from ma2mba.model.backbone import LanguageModel
from ma2mba.model.mamba2_config import Mamba2Config
from ma2mba.ops import backend, cross_entropy_sum

SIZES = {
    "tiny": Mamba2Config(d_model=64, n_layer=2, d_state=16, headdim=16, ssd_block=16, vocab_size=256),
    **sizes.SIZES,
}
DRAWS = 4
Gradients = dict[str, Tensor]


def main() -> int:
    arguments = read_arguments()
    if "RANK" not in os.environ:
        raise SystemExit("start it with torchrun --nproc-per-node N benchmarks/sequence_parallel.py")
    device = torch.device(arguments.device, int(os.environ["LOCAL_RANK"]) if arguments.device == "cuda" else None)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend_of, itself = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    dist.init_process_group(backend_of, timeout=timedelta(hours=1), device_id=itself)
    low, high = (torch.bfloat16, torch.float32) if device.type == "cuda" else (torch.float32, torch.float64)
    torch.manual_seed(0)
    model = LanguageModel(SIZES[arguments.size]).to(device, low)
    report: dict[str, Any] = {"machine": machine(device), "size": arguments.size, "ranks": dist.get_world_size()}
    report["check"] = check(model, arguments.chunk, high)
    say(report["check"])
    alone = measure(model, arguments, shared=False)
    together = measure(model, arguments, shared=True)
    if dist.get_rank() == 0:
        report |= {"alone": alone, "shared": together, "ratio": round(together["seconds"] / alone["seconds"], 3)}
        text = json.dumps(report, indent=1)
        if arguments.out:
            arguments.out.write_text(text + "\n", encoding="utf-8")
        print(text)
    dist.destroy_process_group()
    return 0 if report["check"]["ok"] else 1


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="2.7b")
    parser.add_argument("--tokens", type=int, default=2**20)
    parser.add_argument("--chunk", type=int, default=8192, help="tokens of a chunk on one GPU")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def machine(device: torch.device) -> dict[str, str]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "CPU",
        "torch": torch.__version__,
        "operations": backend(device),
        "commit": commit.stdout.strip() or "unknown",
    }


def say(value: Any) -> None:
    if dist.get_rank() == 0:
        print(json.dumps(value), file=sys.stderr, flush=True)


def build(model: LanguageModel, chunk: int, shared: bool) -> Streamer:
    """Chunks of `chunk` tokens on every GPU that takes part."""
    backbone, weight = model.backbone, model.lm_head.weight
    high = torch.promote_types(weight.dtype, torch.float32)

    def front(ids_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
        return backbone.embedding(ids_BT).to(high), targets_BT

    def head(x_BTD: Tensor, targets_BT: Tensor) -> tuple[Tensor]:
        return (cross_entropy_sum(backbone.norm_f(x_BTD).flatten(0, 1), weight, targets_BT.flatten()),)

    group = dist.group.WORLD
    assert group is not None
    layers = [layer.split(group) for layer in backbone.layers] if shared else backbone.layers
    tokens = chunk * dist.get_world_size() if shared else chunk
    plan = Plan("sequence", tokens, len(layers), "host", graphs=not shared and chunk < EAGER_TOKENS)
    return Streamer(front, layers, head, [backbone.embedding, backbone.norm_f, model.lm_head], plan)


def step(run: Streamer, model: LanguageModel, tokens: int, shared: bool, draw: int = 0) -> float:
    """Gradients of the mean cross-entropy over random tokens, summed over the ranks if they share them; its value."""
    weight = model.lm_head.weight
    generator = torch.Generator(weight.device).manual_seed(tokens + draw)
    ids_BS = torch.randint(0, weight.shape[0], (1, tokens + 1), device=weight.device, generator=generator)
    place, ranks = (dist.get_rank(), dist.get_world_size()) if shared else (0, 1)
    inputs, targets = (
        [chunk.tensor_split(ranks, dim=1)[place] for chunk in t_BS.split(run.plan.chunk_tokens, dim=1)]
        for t_BS in (ids_BS[:, :-1], ids_BS[:, 1:])
    )
    model.zero_grad(set_to_none=True)
    like_x_BTD = torch.empty(1, 0, model.lm_head.in_features, device=weight.device)
    states = [layer.initial_state(like_x_BTD) for layer in model.backbone.layers]
    loss, _ = run(list(zip(inputs, targets, strict=True)), states)
    (loss / tokens).backward()
    total = loss.detach() / tokens
    if shared:
        for tensor in (total, *(p.grad for p in model.parameters())):
            dist.all_reduce(tensor)
    if total.is_cuda:
        torch.cuda.synchronize()
    return total.item()


def check(model: LanguageModel, chunk: int, high: torch.dtype) -> dict[str, Any]:
    """How far gradients are from higher precision, by all ranks and by rank 0 alone; the worst parameter of each."""
    draws = [distances(model, min(chunk, 1024), high, draw) for draw in range(DRAWS)]
    far, own = (
        {name: math.sqrt(sum(draw[name][i] ** 2 for draw in draws) / DRAWS) for name in draws[0]} for i in (0, 1)
    )
    ratios = {name: far[name] / max(own[name], 1e-7) for name in far}
    worst = max(ratios, key=lambda name: ratios[name])
    return {
        "shared": max(far.values()),
        "alone": max(own.values()),
        "median_ratio": statistics.median(ratios.values()),
        "worst_ratio": ratios[worst],
        "parameter": worst,
        "ok": far[worst] <= 2 * max(own[worst], 1e-6),
    }


def distances(model: LanguageModel, chunk: int, high: torch.dtype, draw: int) -> dict[str, tuple[float, float]]:
    """By parameter, relative: of the gradient by all ranks, and of that by rank 0 alone."""
    tokens = 3 * chunk * dist.get_world_size() + 101
    together = gradients(model, chunk, tokens, True, draw)
    alone = gradients(model, chunk, tokens, False, draw)
    low = model.lm_head.weight.dtype
    exact = gradients(model.to(high), chunk, tokens, False, draw)
    model.to(low)
    return {name: (relative(together[name], g), relative(alone[name], g)) for name, g in exact.items()}


def gradients(model: LanguageModel, chunk: int, tokens: int, shared: bool, draw: int) -> Gradients:
    step(build(model, chunk, shared), model, tokens, shared, draw)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    forget(model)
    return found


def relative(found: Tensor, expected: Tensor) -> float:
    found, expected = found.double(), expected.double()
    return ((found - expected).norm() / expected.norm()).item()


def forget(model: LanguageModel) -> None:
    model.zero_grad(set_to_none=True)
    gc.collect()
    if model.lm_head.weight.is_cuda:
        torch.cuda.empty_cache()


def measure(model: LanguageModel, arguments: argparse.Namespace, shared: bool) -> dict[str, Any]:
    """Median seconds of a step by all ranks, or by rank 0 while the others wait (those know nothing then)."""
    figures: dict[str, Any] = {}
    if shared or dist.get_rank() == 0:
        figures = timed(build(model, arguments.chunk, shared), model, arguments, shared)
        forget(model)
    dist.barrier()
    say(figures)
    return figures


def timed(run: Streamer, model: LanguageModel, arguments: argparse.Namespace, shared: bool) -> dict[str, Any]:
    on_gpu = arguments.device == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    step(run, model, min(arguments.tokens, 3 * run.plan.chunk_tokens), shared)
    seconds, loss = [], 0.0
    for _ in range(arguments.repeats):
        began = time.perf_counter()
        loss = step(run, model, arguments.tokens, shared)
        seconds.append(time.perf_counter() - began)
    result = {"seconds": round(statistics.median(seconds), 4), "tokens": arguments.tokens, "loss": loss}
    if on_gpu:
        result["reserved_gib"] = round(torch.cuda.max_memory_reserved() / GIB, 2)
    return result


if __name__ == "__main__":
    sys.exit(main())
