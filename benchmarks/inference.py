"""Measure reading and writing on one GPU: python benchmarks/inference.py WHAT ... --out results.json

    decode     tokens/s of greedy answers, for --rows sequences that advance together
    prefill    tokens/s of text that a session reads, and the memory beyond the weights, for --tokens
    frames     frames/s that a session reads from host memory: vision encoder and language model
    peer       mamba-ssm's own model: prefill of 131,072 tokens in one call, and decode with its CUDA graph

One call takes several WHAT. Each case is appended to the JSON file. The bf16 weights are random.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu import DEVICE, VOCABULARY
from benchmarks.magc import append
from ma2mba.inference.decoder import Decoder
from ma2mba.inference.interleaved import with_frames
from ma2mba.inference.session import Session
from ma2mba.model.config import ModelConfig
from ma2mba.model.sizes import CLIP, SIZES
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.planner.memory import GIB

PROMPT, ANSWER, CHUNK = 64, 64, 16384


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=RUNS, nargs="+", metavar="WHAT", help=", ".join(RUNS))
    parser.add_argument("--size", choices=SIZES, default="2.7b", help="model size (default: %(default)s)")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 32], help="sequences that advance together")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2**17, 2**21], help="lengths of text")
    parser.add_argument("--frames", type=int, default=1200, help="frames of the video (default: %(default)s)")
    parser.add_argument("--chunk", type=int, default=CHUNK, help="tokens of a chunk (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of a case (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="JSON file to append the cases to")
    arguments = parser.parse_args()
    cases: list[dict[str, Any]] = []
    for what in dict.fromkeys(arguments.what):
        for case in RUNS[what](arguments):
            cases.append({"case": what, "size": arguments.size} | case)
            print(json.dumps(cases[-1]), flush=True)
            if arguments.out:
                append(arguments.out, cases)
        torch.cuda.empty_cache()
    return 0


def video_model(size: str) -> VideoMa2mba:
    """Return a model with random bf16 weights, created on DEVICE."""
    torch.manual_seed(0)
    with torch.device(DEVICE):
        return VideoMa2mba(ModelConfig(language_model=SIZES[size], vision=CLIP)).to(torch.bfloat16).eval()


def session(model: VideoMa2mba, chunk: int) -> Session:
    """Return a session whose tokenizer knows only the size of its vocabulary."""
    return Session(model, cast(Tokenizer, SimpleNamespace(get_vocab_size=lambda: VOCABULARY)), chunk)


def seconds(run: Callable[[], object], repeats: int) -> list[float]:
    """Return the seconds of each run, after one run that compiles."""
    run()
    found = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return found


def run_decode(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    model = video_model(arguments.size)
    start = session(model, arguments.chunk)
    start.feed_text(list(range(PROMPT)))
    assert start.states is not None
    for rows in arguments.rows:
        decoder = Decoder(model, [start.states] * rows)

        def answer(decoder: Decoder = decoder, rows: int = rows) -> None:
            ids_B = torch.zeros(rows, dtype=torch.long, device=DEVICE)
            for _ in range(ANSWER):
                ids_B = decoder.step(ids_B)[:, :VOCABULARY].argmax(-1)
                ids_B.tolist()  # each token is shown at once

        taken = seconds(answer, arguments.repeats)
        rate = rows * ANSWER / statistics.median(taken)
        yield {
            "rows": rows,
            "tokens_per_second": round(rate),
            "ms_a_token": [round(s / ANSWER * 1e3, 3) for s in taken],
        }
        del decoder, answer


def run_prefill(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    model = video_model(arguments.size)
    weights = torch.cuda.memory_allocated()
    for tokens in arguments.tokens:
        ids = torch.randint(0, VOCABULARY, (tokens,)).tolist()
        torch.cuda.reset_peak_memory_stats()
        taken = seconds(lambda ids=ids: session(model, arguments.chunk).feed_text(ids), arguments.repeats)
        beyond = (torch.cuda.max_memory_allocated() - weights) / GIB
        rate = tokens / statistics.median(taken)
        yield {
            "tokens": tokens,
            "chunk": arguments.chunk,
            "tokens_per_second": round(rate),
            "beyond_gib": round(beyond, 2),
        }


def run_frames(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    model = video_model(arguments.size)
    size, frames = model.config.image_size, arguments.frames
    frames_NCHW = torch.randint(0, 256, (frames, 3, size, size), dtype=torch.uint8)
    ids_S, visual_S = with_frames([0] * 8, [4] * frames, model.config.tokens_per_frame)
    taken = seconds(lambda: session(model, arguments.chunk).feed(ids_S, visual_S, frames_NCHW), arguments.repeats)
    yield {"frames": frames, "chunk": arguments.chunk, "frames_per_second": round(frames / statistics.median(taken), 1)}


def run_peer(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

    config = SIZES[arguments.size]
    shape = MambaConfig(config.d_model, 0, config.n_layer, vocab_size=VOCABULARY, ssm_cfg={"layer": "Mamba2"})
    model = MambaLMHeadModel(shape, device="cuda", dtype=torch.bfloat16).eval()
    ids_BS = torch.randint(0, VOCABULARY, (1, 2**17), device=DEVICE)
    with torch.no_grad():
        taken = seconds(lambda: model(ids_BS, num_last_tokens=1), arguments.repeats)
        yield {"tokens": 2**17, "tokens_per_second": round(2**17 / statistics.median(taken))}
        prompt_BS = ids_BS[:, :PROMPT]

        def answer(tokens: int) -> Callable[[], object]:
            return lambda: model.generate(prompt_BS, PROMPT + tokens, top_k=1, cg=True)

        short, long = (statistics.median(seconds(answer(n), arguments.repeats)) for n in (ANSWER, 4 * ANSWER))
        yield {"rows": 1, "tokens_per_second": round(3 * ANSWER / (long - short), 1)}


RUNS = {"decode": run_decode, "prefill": run_prefill, "frames": run_frames, "peer": run_peer}

if __name__ == "__main__":
    raise SystemExit(main())
