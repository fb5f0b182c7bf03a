"""Measure one long text shared by the GPUs of a host: torchrun --nproc-per-node N benchmarks/sequence_parallel.py

First, check the gradients. All ranks together and rank 0 alone compute the gradient of every parameter. Both are
compared with the gradient in higher precision (fp32 on a GPU; on a CPU the model is in fp32 and compared in fp64).
Rounding errors differ from text to text: each figure is the root mean square over DRAWS texts.

Then, time one step: forward, backward, mean cross-entropy over every token, and the sum of the gradients over the
ranks. Rank 0 runs the step alone, short chunks captured as CUDA graphs; then all ranks share it. `--chunk` counts the
tokens on each GPU: a chunk that N GPUs share has N times as many. Print one JSON object.

`--size tiny --device cpu` runs on any machine. Its timings have no meaning.

B batch, T tokens of one rank's share of a chunk, D model width, S tokens of the sequence.
"""

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import gpu
from ma2mba.magc import Plan, Streamer
from ma2mba.model import sizes
from ma2mba.model.backbone import LanguageModel
from ma2mba.model.mamba2_config import Mamba2Config
from ma2mba.ops import backend
from ma2mba.ops.selftest import relative
from ma2mba.planner.memory import GIB

SIZES = {
    "tiny": Mamba2Config(d_model=64, n_layer=2, d_state=16, headdim=16, ssd_block=16, vocab_size=256),
    **sizes.SIZES,
}
DRAWS = 4
Gradients = dict[str, Tensor]


def main() -> int:
    arguments = read_arguments()
    if "RANK" not in os.environ:
        raise SystemExit("RANK is not set. Run: torchrun --nproc-per-node N benchmarks/sequence_parallel.py")
    device = torch.device(arguments.device, int(os.environ["LOCAL_RANK"]) if arguments.device == "cuda" else None)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    transport, device_id = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    dist.init_process_group(transport, timeout=timedelta(hours=1), device_id=device_id)
    low, high = (torch.bfloat16, torch.float32) if device.type == "cuda" else (torch.float32, torch.float64)
    torch.manual_seed(0)
    model = LanguageModel(SIZES[arguments.size]).to(device, low)
    report: dict[str, Any] = {"machine": machine(device), "size": arguments.size, "ranks": dist.get_world_size()}
    report["check"] = check(model, arguments.chunk, high)
    print_from_rank_0(report["check"])
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
    parser.add_argument("--size", choices=SIZES, default="2.7b", help="model size (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=2**20, help="length of the text (default: %(default)s)")
    parser.add_argument("--chunk", type=int, default=8192, help="tokens of a chunk on each GPU (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="timed steps (default: %(default)s)")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="device to run on (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="also write the JSON object to this file")
    return parser.parse_args()


def machine(device: torch.device) -> dict[str, str]:
    """Return the device, the operations that run on it, and the versions of PyTorch and of the code."""
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "CPU",
        "torch": torch.__version__,
        "operations": backend(device),
        "commit": gpu.commit(),
    }


def print_from_rank_0(value: Any) -> None:
    if dist.get_rank() == 0:
        print(json.dumps(value), file=sys.stderr, flush=True)


def build(model: LanguageModel, chunk: int, shared: bool) -> Streamer:
    """Return a streamer of the summed cross-entropy, with chunks of `chunk` tokens on every GPU that takes part."""
    if not shared:
        return gpu.streamer(model, gpu.fast_plan(model, chunk))
    group = dist.group.WORLD
    assert group is not None
    layers = [layer.split(group) for layer in model.backbone.layers]
    plan = Plan("sequence", chunk * dist.get_world_size(), len(layers), "host")
    return gpu.streamer(model, plan, layers)


def step(run: Streamer, model: LanguageModel, tokens: int, shared: bool, draw: int = 0) -> float:
    """Compute the gradients of the mean cross-entropy over random tokens; return the mean cross-entropy.

    If the ranks share the tokens, sum both over the ranks.
    """
    weight = model.lm_head.weight
    generator = torch.Generator(weight.device).manual_seed(tokens + draw)
    ids_BS = torch.randint(0, weight.shape[0], (1, tokens + 1), device=weight.device, generator=generator)
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if shared else (0, 1)
    inputs, targets = (
        [chunk.tensor_split(ranks, dim=1)[rank] for chunk in t_BS.split(run.plan.chunk_tokens, dim=1)]
        for t_BS in (ids_BS[:, :-1], ids_BS[:, 1:])
    )
    model.zero_grad(set_to_none=True)
    states = gpu.initial_states(model)
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
    """Return the largest gradient errors of all ranks together and of rank 0 alone, and the worst ratio of the two."""
    draws = [gradient_errors(model, min(chunk, 1024), high, draw) for draw in range(DRAWS)]
    together, alone = (
        {name: math.sqrt(sum(draw[name][i] ** 2 for draw in draws) / DRAWS) for name in draws[0]} for i in (0, 1)
    )
    ratios = {name: together[name] / max(alone[name], 1e-7) for name in together}
    worst = max(ratios, key=lambda name: ratios[name])
    return {
        "shared": max(together.values()),
        "alone": max(alone.values()),
        "median_ratio": statistics.median(ratios.values()),
        "worst_ratio": ratios[worst],
        "parameter": worst,
        "ok": together[worst] <= 2 * max(alone[worst], 1e-6),
    }


def gradient_errors(model: LanguageModel, chunk: int, high: torch.dtype, draw: int) -> dict[str, tuple[float, float]]:
    """Return each parameter's relative gradient errors: of all ranks together, and of rank 0 alone."""
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
    gpu.release(model)
    return found


def measure(model: LanguageModel, arguments: argparse.Namespace, shared: bool) -> dict[str, Any]:
    """Time a step by all ranks, or by rank 0 while the other ranks wait and return {}."""
    figures: dict[str, Any] = {}
    if shared or dist.get_rank() == 0:
        figures = timed(build(model, arguments.chunk, shared), model, arguments, shared)
        gpu.release(model)
    dist.barrier()
    print_from_rank_0(figures)
    return figures


def timed(run: Streamer, model: LanguageModel, arguments: argparse.Namespace, shared: bool) -> dict[str, Any]:
    """Return the median seconds of a step and its loss, after a warm-up on at most 3 chunks.

    On a GPU, also return the peak of reserved memory, warm-up included.
    """
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
