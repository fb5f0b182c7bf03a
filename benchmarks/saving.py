"""Measure how long training stands still for a checkpoint, and what steps cost while it is written.

Trains a model of random weights on random tokens under ZeRO 1, saves once in the middle, and takes steps until the
checkpoint is complete. Prints one JSON line. On a GPU of 141 GiB, with 64 GiB of disk for a checkpoint of 40 GB:

    python benchmarks/saving.py --size 2.7b --folder DIR [--verify]

On a CPU, --layers makes a model small enough: --size 370m --layers 2 --tokens 64 --chunk 64
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ma2mba.data.batch import Sample, collate
from ma2mba.data.sampler import Position
from ma2mba.magc import Plan
from ma2mba.model.config import ModelConfig
from ma2mba.model.empty import build_empty
from ma2mba.model.hf.card import CardFacts
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.planner.memory import GIB, Host
from ma2mba.training.checkpoint.code_version import code_version
from ma2mba.training.checkpoint.folder import is_complete
from ma2mba.training.engine import Engine, build_engine, start_processes, stop_processes
from ma2mba.training.faults.shares import build_shares
from ma2mba.training.faults.stop_points import StopPoints
from ma2mba.training.faults.stop_vote import StopVote
from ma2mba.training.fit.pricing import config_of_size
from ma2mba.training.recipe.loading import parse_recipe
from ma2mba.training.recipe.schema import Recipe
from ma2mba.training.saver import Contents, Saver
from ma2mba.training.world import World, load_policy

RECIPE = {
    "stage": "stage2",
    "data": "",
    "init_from": "",
    "trainable": {"projector": 1e-5, "language_model": 1e-5, "vision": 1e-5},
    "global_batch": 1,
    "steps": 1 << 20,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="2.7b", help="370m, 1.3b or 2.7b (default: 2.7b), with ViT-L/14")
    parser.add_argument("--layers", type=int, help="layers of both models (default: all)")
    parser.add_argument("--tokens", type=int, default=32_768, help="tokens of a step (default: 32,768)")
    parser.add_argument("--chunk", type=int, default=8192, help="tokens of a chunk (default: 8,192)")
    parser.add_argument("--steps", type=int, default=15, help="steps before the save (default: 15)")
    parser.add_argument("--direct", action="store_true", help="write straight to disk, as without host memory")
    parser.add_argument("--verify", action="store_true", help="read the checkpoint again and compare all hashes")
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as run:
        print(json.dumps(measure(options, Path(run))))


def measure(options: argparse.Namespace, run: Path) -> dict[str, Any]:
    recipe, world = parse_recipe(RECIPE | {"run": str(run)}), World.from_environment()
    start_processes(world)
    tokenizer = run / "tokenizer.json"
    Tokenizer(models.WordLevel({"<|endoftext|>": 0, "a": 1}, unk_token="a")).save(str(tokenizer))
    engine = open_engine(options, recipe, world)
    free = Host().free()
    began = time.perf_counter()
    with Saver(engine, recipe, tokenizer, 0 if options.direct else free, build_shares(world)) as saver:
        before = [take_step(engine, options) for _ in range(options.steps)]
        still = time.perf_counter()
        facts = {"ranks": 1, "zero_stage": 1, "dtype": str(world.dtype("auto")), "data_fingerprint": ""}
        facts |= {"recipe": recipe.model_dump(mode="json"), "code": code_version()}
        saver.start(options.steps, Contents(Position(), facts, CardFacts()), last=False)
        still = time.perf_counter() - still
        during = []
        while (save := saver.finished()) is None:
            during.append(take_step(engine, options))
        after = [take_step(engine, options) for _ in range(3)]
    size = sum(path.stat().st_size for path in save.folder.rglob("*") if path.is_file())
    result = {
        "checkpoint_gb": round(size / 1e9, 2),
        "stood_still_seconds": round(still, 2),
        "save_seconds": round(save.seconds, 2),
        "seconds_of_training": round(time.perf_counter() - began, 1),
        "step_seconds_before": rounded(before),
        "step_seconds_while_writing": rounded(during),
        "step_seconds_after": rounded(after),
        "slower_while_writing": round(statistics.median(during or [0.0]) / statistics.median(after), 3),
        "host_free_gib": round(free / GIB, 1),
        "disk_free_gib": round(shutil.disk_usage(run).free / GIB, 1),
        "device": torch.cuda.get_device_name() if world.device.type == "cuda" else "cpu",
    }
    if options.verify:
        result["complete"] = is_complete(save.folder)
    stop_processes()
    return result


def rounded(seconds: list[float]) -> list[float]:
    return [round(value, 3) for value in seconds]


@torch.no_grad()
def open_engine(options: argparse.Namespace, recipe: Recipe, world: World) -> Engine:
    """Return the engine of a model of random weights, made on the device."""
    config = config_of_size(options.size)
    if options.layers:
        language = config.language_model.model_copy(update={"n_layer": options.layers})
        vision = config.vision.model_copy(update={"num_hidden_layers": options.layers})
        config = ModelConfig(language_model=language, vision=vision)
    model = build_empty(lambda: VideoMa2mba(config), world.device, world.dtype("auto"))
    for parameter in model.parameters():
        parameter.normal_(std=0.02)
    plan = Plan("sequence", options.chunk, config.language_model.n_layer)
    with torch.enable_grad():
        return build_engine(model, recipe, plan, world, load_policy("zero1"))


def take_step(engine: Engine, options: argparse.Namespace) -> float:
    """Take one optimizer step on random tokens, and return its seconds."""
    began = time.perf_counter()
    tokens, no_frames = np.random.randint(0, 1000, options.tokens), np.zeros((0, 3, 336, 336), np.uint8)
    sample = Sample("random", tokens, np.ones(options.tokens, bool), np.zeros(0, np.int64), no_frames)
    batch = collate([sample], engine.model.config.tokens_per_frame)
    engine.set_rates(1.0)
    loss = engine.forward(batch, 1 / options.tokens, StopPoints(StopVote(None, 1), engine.zero_stage))
    engine.backward(loss)
    engine.step()
    engine.sum_over_ranks(loss.detach())  # waits for the device
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
