"""Measure how long a model takes to load, and what memory it takes.

Writes a model of random weights to a temporary folder (the page cache then holds the file), loads it several times, and
compares every parameter with the file.

    python benchmarks/loading.py --size 2.7b --device cuda [--dtype auto] [--repeats 3] [--folder DIR]
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import torch
from safetensors import safe_open
from tokenizers import Tokenizer, models

from ma2mba.model.empty import build_empty
from ma2mba.model.pretrained import load_model, save_model
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.training.fit.pricing import config_of_size


@torch.no_grad()
def write_model(size: str, device: str, folder: Path, tokenizer: Path | None = None) -> Path:
    """Write `folder`/model, a model of one of the paper's sizes in bf16, and return it. `tokenizer` may be missing."""
    config = config_of_size(size)
    model = build_empty(lambda: VideoMa2mba(config), device, torch.bfloat16)
    for parameter in model.parameters():
        parameter.normal_(std=0.02)
    if tokenizer is None:
        tokenizer = folder / "tokenizer.json"
        Tokenizer(models.WordLevel({"<|endoftext|>": 0, "a": 1}, unk_token="a")).save(str(tokenizer))
    save_model(model, tokenizer, folder / "model")
    return folder / "model"


def differing(model: VideoMa2mba, folder: Path) -> list[str]:
    """Return the names of parameters that are not the file's values."""
    named = dict(model.named_parameters())
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return [name for name in file.keys() if not torch.equal(named[name].cpu(), file.get_tensor(name))]  # noqa: SIM118


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--size", default="2.7b")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="Where to write (default: the system's).")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = write_model(options.size, options.device, Path(temporary))
        model = None
        for _ in range(options.repeats):
            del model
            began = time.monotonic()
            model, _ = load_model(folder, options.device, options.dtype)
            seconds = time.monotonic() - began
            row = {"seconds": round(seconds, 3), "bytes": (folder / "model.safetensors").stat().st_size}
            row |= {"host_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10}
            print(json.dumps(row | {"dtype": str(model.projector_dtype)}), flush=True)
        print(json.dumps({"differing": differing(model, folder)}))


if __name__ == "__main__":
    main()
