"""Speed and memory of streamed training of Mamba-2 on one GPU: python benchmarks/magc.py [--out FILE.json]

Checks first (recorded chunks against plain ones, on the same kernels), then measures tokens a second and peak memory of
a step (forward, backward, mean cross-entropy over every token) by chunk length and sequence length, beside mamba-ssm's
own model without checkpointing. Prints one JSON object.

B batch, T tokens of a chunk, D model width, M rows.
"""

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ma2mba.magc import Plan, Streamer
from ma2mba.model.backbone import Mamba2LanguageModel
from ma2mba.model.config import BackboneConfig
from ma2mba.ops import backend, cross_entropy_sum

DEVICE = torch.device("cuda")
SIZES = {"370m": (1024, 48), "1.3b": (2048, 48), "2.7b": (2560, 64)}
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="2.7b")
    parser.add_argument("--chunks", type=int, nargs="+", default=[2048, 4096, 8192])
    parser.add_argument("--tokens", type=int, nargs="+", default=[2**14, 2**17])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-peer", action="store_true", help="leave out mamba-ssm's model")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    width, depth = SIZES[arguments.size]
    config = BackboneConfig(d_model=width, n_layer=depth)
    report: dict[str, Any] = {"machine": machine(), "size": arguments.size, "cases": []}
    if not arguments.no_peer:
        report["cases"].append(peer(config, 2**14, arguments.repeats))
        say(report["cases"][-1])
        gc.collect()
        torch.cuda.empty_cache()
    torch.manual_seed(0)
    model = Mamba2LanguageModel(config).to(DEVICE, torch.bfloat16)
    report["weights_gib"] = torch.cuda.memory_allocated() / GIB
    report["check"] = check(model, min(arguments.chunks))
    say(report["check"])
    for chunk in arguments.chunks:
        report["cases"] += [case | {"peer": False} for case in measure(model, chunk, arguments)]
    text = json.dumps(report, indent=1)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    print(text)


def machine() -> dict[str, str]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "operations": backend(DEVICE),
        "commit": commit.stdout.strip() or "unknown",
    }


def say(value: Any) -> None:
    print(json.dumps(value), file=sys.stderr, flush=True)


def streamer(model: Mamba2LanguageModel, chunk: int, graphs: bool) -> Streamer:
    backbone = model.backbone

    def front(ids_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
        return backbone.embedding(ids_BT).float(), targets_BT

    def head(x_BTD: Tensor, targets_BT: Tensor) -> tuple[Tensor]:
        x_MD = backbone.norm_f(x_BTD).flatten(0, 1)
        return (cross_entropy_sum(x_MD, model.lm_head.weight, targets_BT.flatten()),)

    plan = Plan("sequence", chunk, len(backbone.layers), "host", graphs=graphs)
    return Streamer(front, backbone.layers, head, [backbone.embedding, backbone.norm_f, model.lm_head], plan)


def step(run: Streamer, model: Mamba2LanguageModel, tokens: int) -> float:
    """Forward and backward over random tokens; the mean cross-entropy."""
    generator = torch.Generator(DEVICE).manual_seed(tokens)
    ids_BT = torch.randint(0, 50277, (1, tokens + 1), device=DEVICE, generator=generator)
    cuts = [(start, min(start + run.plan.chunk_tokens, tokens)) for start in range(0, tokens, run.plan.chunk_tokens)]
    chunks = [(ids_BT[:, start:stop], ids_BT[:, start + 1 : stop + 1]) for start, stop in cuts]
    like_x_BTD = torch.empty(1, 0, model.lm_head.in_features, device=DEVICE)
    model.zero_grad(set_to_none=True)
    loss, _ = run(chunks, [layer.initial_state(like_x_BTD) for layer in model.backbone.layers])
    (loss / tokens).backward()
    return loss.item() / tokens


def check(model: Mamba2LanguageModel, chunk: int) -> dict[str, float]:
    """Worst relative difference of a parameter's gradient, recorded against plain; a ragged last chunk, two steps."""
    tokens = 4 * chunk + 100
    plain = streamer(model, chunk, graphs=False)
    step(plain, model, tokens)
    expected = {name: p.grad.cpu() for name, p in model.named_parameters()}
    recorded = streamer(model, chunk, graphs=True)
    worst = 0.0
    for _ in range(2):
        step(recorded, model, tokens)
        for name, p in model.named_parameters():
            a, b = p.grad.float(), expected[name].to(DEVICE).float()
            worst = max(worst, ((a - b).norm() / b.norm()).item())
    forget(model)
    if not worst < 1e-2:
        raise SystemExit(f"recorded chunks differ from plain ones by {worst}; nothing is measured")
    return {"recorded_against_plain": worst}


def forget(model: Mamba2LanguageModel) -> None:
    """Let go of a streamer's standing sums."""
    model.zero_grad(set_to_none=True)
    for parameter in model.parameters():
        parameter.__dict__.pop("main_grad", None)
    gc.collect()
    torch.cuda.empty_cache()


def measure(model: Mamba2LanguageModel, chunk: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    run = streamer(model, chunk, graphs=True)
    step(run, model, 3 * chunk)
    cases = []
    for tokens in arguments.tokens:
        step(run, model, tokens)
        torch.cuda.empty_cache()
        figures = timed(partial(step, run, model, tokens), tokens, arguments.repeats)
        cases.append({"case": "streamed", "chunk": chunk} | figures)
        say(cases[-1])
    forget(model)
    return cases


def timed(run: Callable[[], float], tokens: int, repeats: int) -> dict[str, Any]:
    """Median speed, and the most memory held: what recorded graphs use is reserved and not seen as allocated."""
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
        "reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 2),
        "allocated_gib": round(torch.cuda.max_memory_allocated() / GIB, 2),
        "loss": loss,
    }


def peer(config: BackboneConfig, tokens: int, repeats: int) -> dict[str, Any]:
    """mamba-ssm's model of the same shape, no checkpointing, mean cross-entropy over every token."""
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

    shape = MambaConfig(d_model=config.d_model, n_layer=config.n_layer, vocab_size=50277, ssm_cfg={"layer": "Mamba2"})
    model = MambaLMHeadModel(shape, device="cuda", dtype=torch.bfloat16)
    ids_BT = torch.randint(0, 50277, (1, tokens + 1), device=DEVICE)

    def run() -> float:
        model.zero_grad(set_to_none=True)
        logits_BTV = model(ids_BT[:, :-1]).logits
        loss = F.cross_entropy(logits_BTV[0].float(), ids_BT[0, 1:])
        loss.backward()
        return loss.item()

    run()
    result = {"case": "mamba-ssm, no checkpointing", "peer": True} | timed(run, tokens, repeats)
    return result


if __name__ == "__main__":
    main()
