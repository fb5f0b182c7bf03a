"""MA-GC on one GPU, checked and then measured: python benchmarks/magc.py WHAT ... --out results.json

    exact                          every schedule's gradients against plain autograd on the same kernels
    stream --chunks 2304 16384 --tokens 16384 131072       forward and backward of a streamed model
    peer                           mamba-ssm's own model without checkpointing, same loss, 16,384 tokens
    official --checkout FOLDER     the public code of the paper's authors (github.com/klae01/ma2mba)
    train --chunks 16384 --tokens 8000000 [--cap-gb 80]    a whole step with DeepSpeed's ZeRO-1 and AdamW; with torchrun
                                                           --nproc-per-node N on N GPUs, so many tokens on each

Several may be given in one call ("exact peer stream ..."). Every case is appended to the JSON file; benchmarks/plots.py
draws it. Mean cross-entropy over every token, random bf16 weights, batch 1, states in pinned host memory.
"""

import argparse
import gc
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import exactness, gpu
from benchmarks.gpu import DEVICE, GIB, VOCABULARY

WHAT = ("exact", "stream", "peer", "official", "train")
EXACT = 1e-5
NO_FARTHER = 1.005


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=WHAT, nargs="+")
    parser.add_argument("--size", choices=gpu.SIZES, default="2.7b")
    parser.add_argument("--chunks", type=int, nargs="+", default=[2048, 16384])
    parser.add_argument("--tokens", type=int, nargs="+", default=[2**17])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memos", type=int, nargs="+", help="chunks with memos, one number for each of --chunks")
    parser.add_argument("--checkout", type=Path, help="of the official code")
    parser.add_argument("--cap-gb", type=float, help="let PyTorch take no more than so many 10^9 bytes")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    cases: list[dict[str, Any]] = []
    failed = 0
    for what in dict.fromkeys(arguments.what):
        for case in globals()[f"run_{what}"](arguments):
            cases.append({"case": what, "size": arguments.size} | case)
            failed += case.get("ok") is False
            if int(os.environ.get("RANK", 0)):
                continue
            print(json.dumps(cases[-1]), flush=True)
            if arguments.out:
                keep(arguments.out, cases)
        gc.collect()
        torch.cuda.empty_cache()
    return 1 if failed else 0


def keep(path: Path, cases: list[dict[str, Any]]) -> None:
    """Append the cases of this process to what the file holds of others."""
    known = json.loads(path.read_text())["runs"] if path.exists() else []
    known = [run for run in known if run["started"] != STARTED]
    runs = [*known, {"started": STARTED, "machine": gpu.machine(), "cases": cases}]
    path.write_text(json.dumps({"runs": runs}, indent=1) + "\n", encoding="utf-8")


STARTED = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def run_exact(_: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """For each dtype the worst row: fp32 by the difference, bf16 by the ratio that chance does not explain."""
    every = []
    for row in exactness.rows(exactness.plans()):
        every.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    for dtype, figure, bound in (("fp32", "worst", EXACT), ("bf16", "surely", NO_FARTHER)):
        found = [row for row in every if row["dtype"] == dtype]
        worst = max(found, key=lambda row: row[figure])
        yield {"schedules": len(found), "figure": figure, "bound": bound, "ok": worst[figure] <= bound, **worst}


def run_stream(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    model = gpu.language_model(arguments.size)
    weights = sum(p.nbytes for p in model.parameters())
    gradients = sum(4 * p.numel() + p.nbytes for p in model.parameters())
    for chunk, memos in zip(arguments.chunks, arguments.memos or [0] * len(arguments.chunks), strict=True):
        run = gpu.streamer(model, gpu.fast_plan(model, chunk, memos))
        gpu.step(run, model, 4 * chunk)
        for tokens in arguments.tokens:
            figures = gpu.timed(partial(gpu.step, run, model, tokens), tokens, arguments.repeats)
            beyond = figures["reserved_gib"] - (weights + gradients) / GIB
            yield {"chunk": chunk, "memos": memos, "graphs": run.plan.graphs, "beyond_gib": round(beyond, 2), **figures}
        del run
        gpu.release(model)


def run_peer(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

    yield from _peer(MambaLMHeadModel, arguments, 2**14, every_token=True)


def run_official(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """At every length of --tokens, with the last token's logits alone: the whole ones do not fit."""
    for tokens in arguments.tokens:
        yield from _peer(_official_model(arguments.checkout), arguments, tokens, every_token=False)


def _official_model(checkout: Path) -> Any:
    """MambaLMHeadModel of another package that calls itself mamba_ssm too, written for earlier versions of transformers
    and causal-conv1d."""
    from causal_conv1d import cpp_functions
    from transformers import generation

    for name in ("GreedySearchDecoderOnlyOutput", "SampleDecoderOnlyOutput"):
        setattr(generation, name, getattr(generation, name, generation.GenerateDecoderOnlyOutput))
    ours = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "mamba_ssm"}
    sys.path.insert(0, str(checkout))
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
    from mamba_ssm.ops.triton import ssd_combined

    ssd_combined.causal_conv1d_cuda = SimpleNamespace(
        causal_conv1d_fwd=cpp_functions.causal_conv1d_fwd_function,
        causal_conv1d_bwd=cpp_functions.causal_conv1d_bwd_function,
    )
    sys.path.remove(str(checkout))
    for name in [name for name in sys.modules if name.split(".")[0] == "mamba_ssm"]:
        del sys.modules[name]
    sys.modules.update(ours)
    return MambaLMHeadModel


def _peer(kind: Any, arguments: argparse.Namespace, tokens: int, every_token: bool) -> Iterator[dict[str, Any]]:
    from mamba_ssm.models.config_mamba import MambaConfig

    config = gpu.SIZES[arguments.size]
    shape = MambaConfig(config.d_model, 0, config.n_layer, vocab_size=VOCABULARY, ssm_cfg={"layer": "Mamba2"})
    model = kind(shape, device="cuda", dtype=torch.bfloat16)
    if not every_token:
        model.gradient_checkpointing_enable()
    ids_BS = torch.randint(0, VOCABULARY, (1, tokens + 1), device=DEVICE)

    def run() -> float:
        model.zero_grad(set_to_none=True)
        logits_BSV = model(ids_BS[:, :-1], num_last_tokens=0 if every_token else 1).logits
        loss = F.cross_entropy(logits_BSV[0].float(), ids_BS[0, -logits_BSV.shape[1] :])
        loss.backward()
        return loss.item()

    run()
    figures = gpu.timed(run, tokens, arguments.repeats)
    held = 2 * sum(p.nbytes for p in model.parameters()) / GIB
    yield {"every_token": every_token, "beyond_gib": round(figures["allocated_gib"] - held, 2), **figures}


def run_train(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Steps (forward, backward, optimizer) after one of a few chunks that compiles, records and makes the states."""
    from benchmarks import gpu_train

    if arguments.cap_gb:
        share = arguments.cap_gb * 1e9 / torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(share)
    chunk = arguments.chunks[0]
    began = time.perf_counter()
    train_step = gpu_train.open_training(arguments.size, chunk)
    train_step(4 * chunk)
    ready = time.perf_counter() - began
    for tokens in arguments.tokens:
        figures = gpu.timed(partial(train_step, tokens), tokens, arguments.repeats)
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
        yield {
            "ranks": int(os.environ.get("WORLD_SIZE", 1)),
            "chunk": chunk,
            "cap_gb": arguments.cap_gb,
            "host_gib": round(host, 1),
            "seconds_to_ready": round(ready, 1),
            **figures,
        }


if __name__ == "__main__":
    sys.exit(main())
