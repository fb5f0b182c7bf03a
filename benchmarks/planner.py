"""Compare the planner's predictions with a GPU: python benchmarks/planner.py [--out FILE.json]

For each size and length the planner chooses a plan within a memory limit, which leaves less memory for longer
sequences. One step of the plan runs: forward and backward of the mean cross-entropy of every token, with random bf16
weights. Prints one JSON row per case with the measured peak and two predictions: from layers measured on this GPU, and
from the shapes of the kernels. Exits with code 1 if a prediction is off by more than 10%. `--device cpu --size tiny`
needs no GPU: it compares counted bytes.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import gpu
from ma2mba.magc import Plan
from ma2mba.model.backbone import LanguageModel
from ma2mba.model.clip_config import ClipConfig
from ma2mba.model.config import ModelConfig
from ma2mba.model.mamba2_config import Mamba2Config
from ma2mba.model.sizes import CLIP
from ma2mba.planner.choose import Budget, Planner
from ma2mba.planner.memory import GIB
from ma2mba.planner.meter import measuring
from ma2mba.planner.schedule import Workload
from ma2mba.training.fit.pricing import Machine, Priced, Setup, config_of_size, make_planner

TOKENS = {"cuda": (2**14, 2**16, 2**17, 2**18), "cpu": (2**9, 2**10, 2**11)}
ROOM_GIB = {"cuda": (24.0, 18.0, 12.0, 6.0), "cpu": (0.5, 0.3, 0.25)}
"""Memory of a step without the weights and the sums of gradients, one value for each length, so that plans differ."""
WITHIN = 0.1
TINY = ModelConfig(
    language_model=Mamba2Config(d_model=128, n_layer=4, d_state=16, headdim=16, ssd_block=64),
    vision=ClipConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=[*gpu.SIZES, "tiny"], nargs="+", default=[*gpu.SIZES])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    gpu.DEVICE = torch.device(arguments.device)
    rows = []
    for size in arguments.size:
        for row in cases(size, arguments.device):
            rows.append(row)
            print(json.dumps(row), flush=True)
        gc.collect()
    if arguments.out:
        facts = gpu.machine() if arguments.device == "cuda" else {}
        arguments.out.write_text(json.dumps({"machine": facts, "cases": rows}, indent=1) + "\n", encoding="utf-8")
    return 1 if any(abs(row["ratio"] - 1) > WITHIN for row in rows) else 0


def cases(size: str, device: str) -> Iterator[dict[str, Any]]:
    """Yield the row of each length."""
    config = TINY if size == "tiny" else config_of_size(size).model_copy(update={"vision": CLIP})
    setup = Setup(config, ("language_model",), torch.bfloat16 if device == "cuda" else torch.float32)
    torch.manual_seed(0)
    with torch.device(device):
        model = LanguageModel(config.language_model).to(setup.dtype)
    weights = sum(p.nbytes for p in model.parameters())
    sums = sum(4 * p.numel() for p in model.parameters())
    longest = Workload(max(TOKENS[device]))
    priced: tuple[Priced, ...] = ("here", "kernels") if device == "cuda" else ("torch",)
    planners = {name: alone(make_planner(setup, longest, machine(name)), weights, device) for name in priced}
    for tokens, room in zip(TOKENS[device], ROOM_GIB[device], strict=True):
        held = weights if device == "cuda" else 0
        limit = int(held + sums + room * GIB)
        first = planners[priced[0]]
        first = replace(first, budget=replace(first.budget, device=limit))
        choice = first.choose(Workload(tokens))
        if choice is None:
            yield {"size": size, "tokens": tokens, "limit_gib": limit / GIB, "plan": None, "ratio": 0.0}
            continue
        began = time.perf_counter()
        measured = peak(model, choice.best.plan, tokens, device)
        figures = {name: p.predict(Workload(tokens), choice.best.plan).device_bytes for name, p in planners.items()}
        yield {
            "size": size,
            "tokens": tokens,
            "limit_gib": round(limit / GIB, 2),
            "plan": vars(choice.best.plan),
            "peak_at": choice.best.moment,
            "parts_gib": {use: round(nbytes / GIB, 3) for use, nbytes in choice.best.device.items() if nbytes},
            "predicted_gib": {name: round(figure / GIB, 3) for name, figure in figures.items()},
            "predicted_seconds": round(choice.best.seconds, 2),
            **{name: round(value, 3) for name, value in measured.items()},
            "took": round(time.perf_counter() - began, 1),
            "ratio": round(figures[priced[0]] / GIB / measured["measured_gib"], 3),
        }


def machine(priced: Priced) -> Machine:
    """Return a machine whose memory limits nothing."""
    return Machine(1 << 50, 1 << 40 if priced != "torch" else None, priced, graphs=priced != "torch")


def alone(planner: Planner, weights: int, device: str) -> Planner:
    """Return the planner without an optimizer: only the weights are taken all the time.

    On a CPU they do not count: bytes are counted after the model exists.
    """
    base = {"weights": weights if device == "cuda" else 0}
    return replace(planner, budget=Budget(planner.budget.device, planner.budget.host, base))


def peak(model: LanguageModel, plan: Plan, tokens: int, device: str) -> dict[str, float]:
    """Return the peak memory of a step in GiB, on a GPU including the weights, and there the seconds of a second step.

    The peak is that of allocated memory. With captured chunks it is that of reserved memory, because the allocator does
    not count the memory of captured graphs as allocated.
    """
    run = gpu.streamer(model, plan)
    if device == "cpu":
        with measuring(torch.device("cpu")) as meter:
            gpu.step(run, model, tokens)
        model.zero_grad(set_to_none=True)
        return {"measured_gib": meter.peak / GIB}
    gpu.step(run, model, min(tokens, 4 * plan.chunk_tokens))
    figures = gpu.timed(partial(gpu.step, run, model, tokens), tokens, 1)
    del run
    gpu.release(model)
    both = {name: figures[name] for name in ("reserved_gib", "allocated_gib")}
    measured = both["reserved_gib" if plan.graphs else "allocated_gib"]
    return both | {"measured_gib": measured, "seconds": figures["seconds"][0]}


if __name__ == "__main__":
    sys.exit(main())
