"""Check and measure MA-GC on one GPU: python benchmarks/magc.py WHAT ... --out results.json

    exact                          gradients of every schedule, compared with plain autograd on the same kernels
    stream --chunks 2304 16384 --tokens 16384 131072       forward and backward of a streamed model
    peer                           mamba-ssm's own model without checkpointing, same loss, 16,384 tokens
    official --checkout FOLDER     the public code of the paper's authors (github.com/klae01/ma2mba)
    train --chunks 16384 --tokens 8000000 [--cap-gb 80]    a whole step with DeepSpeed's ZeRO-1 and AdamW; with torchrun
                                                           --nproc-per-node N on N GPUs, --tokens on each

One call takes several WHAT ("exact peer stream ..."). Each case is appended to the JSON file; benchmarks/plots.py
plots the file. The loss is the mean cross-entropy over every token, the bf16 weights are random, the batch has one
row, and the states are in pinned host memory.
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
from benchmarks.gpu import DEVICE, VOCABULARY
from ma2mba.model.sizes import SIZES
from ma2mba.planner.memory import GIB

FP32_BOUND = 1e-5
BF16_BOUND = 1.005
STARTED = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=RUNS, nargs="+", metavar="WHAT", help=", ".join(RUNS))
    parser.add_argument("--size", choices=SIZES, default="2.7b", help="model size (default: %(default)s)")
    parser.add_argument(
        "--chunks", type=int, nargs="+", default=[2048, 16384], help="tokens of a chunk (default: 2048 16384)"
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[2**17], help="sequence lengths (default: 131072)")
    parser.add_argument("--repeats", type=int, default=3, help="timed steps of a case (default: %(default)s)")
    parser.add_argument(
        "--memos", type=int, nargs="+", help="chunks with memos, one number for each of --chunks (default: 0)"
    )
    parser.add_argument("--checkout", type=Path, help="folder of the official code (for official)")
    parser.add_argument(
        "--cap-gb", type=float, help="most memory that PyTorch may use, in 10^9 bytes (for train; default: all)"
    )
    parser.add_argument("--out", type=Path, help="JSON file to append the cases to")
    arguments = parser.parse_args()
    cases: list[dict[str, Any]] = []
    failed = 0
    for what in dict.fromkeys(arguments.what):
        for case in RUNS[what](arguments):
            cases.append({"case": what, "size": arguments.size} | case)
            failed += case.get("ok") is False
            if int(os.environ.get("RANK", 0)):
                continue
            print(json.dumps(cases[-1]), flush=True)
            if arguments.out:
                append(arguments.out, cases)
        gc.collect()
        torch.cuda.empty_cache()
    return 1 if failed else 0


def append(path: Path, cases: list[dict[str, Any]]) -> None:
    """Write the cases of this process to the file, after the runs of other processes that the file already holds."""
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    others = [run for run in runs if run["started"] != STARTED]
    runs = [*others, {"started": STARTED, "machine": gpu.machine(), "cases": cases}]
    path.write_text(json.dumps({"runs": runs}, indent=1) + "\n", encoding="utf-8")


def run_exact(_: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the worst row of each dtype, by the difference in fp32 and by `surely` in bf16 (see exactness.py)."""
    rows = []
    for row in exactness.rows(exactness.plans()):
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    for dtype, figure, bound in (("fp32", "worst", FP32_BOUND), ("bf16", "surely", BF16_BOUND)):
        found = [row for row in rows if row["dtype"] == dtype]
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

    yield _other_model(MambaLMHeadModel, arguments, 2**14, every_token=True)


def run_official(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure each length of --tokens with the logits of the last token only: all logits do not fit in memory."""
    for tokens in arguments.tokens:
        yield _other_model(_official_model(arguments.checkout), arguments, tokens, every_token=False)


def _official_model(checkout: Path) -> Any:
    """Return MambaLMHeadModel of the official code.

    The official package is also named mamba_ssm, so it is imported in place of the installed one, which is then
    restored. It was written for earlier versions of transformers and causal-conv1d: names that it needs are added.
    """
    from causal_conv1d import cpp_functions
    from transformers import generation

    for name in ("GreedySearchDecoderOnlyOutput", "SampleDecoderOnlyOutput"):
        setattr(generation, name, getattr(generation, name, generation.GenerateDecoderOnlyOutput))
    installed = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "mamba_ssm"}
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
    sys.modules.update(installed)
    return MambaLMHeadModel


def _other_model(model_class: Any, arguments: argparse.Namespace, tokens: int, every_token: bool) -> dict[str, Any]:
    """Measure forward and backward of another package's model, with the loss of every token or of the last token."""
    from mamba_ssm.models.config_mamba import MambaConfig

    config = SIZES[arguments.size]
    shape = MambaConfig(config.d_model, 0, config.n_layer, vocab_size=VOCABULARY, ssm_cfg={"layer": "Mamba2"})
    model = model_class(shape, device="cuda", dtype=torch.bfloat16)
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
    return {"every_token": every_token, "beyond_gib": round(figures["allocated_gib"] - held, 2), **figures}


def run_train(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure steps (forward, backward, optimizer) after a first step on 4 chunks.

    The first step compiles kernels, captures CUDA graphs and creates the optimizer states.
    """
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


RUNS = {"exact": run_exact, "stream": run_stream, "peer": run_peer, "official": run_official, "train": run_train}

if __name__ == "__main__":
    sys.exit(main())
