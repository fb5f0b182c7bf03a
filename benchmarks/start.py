"""Measure a start: the seconds from `ma2mba train` to the end of its first step, and where they went.

Writes a model of random weights and shards of noise to a temporary folder (the page cache then holds them). Starts the
trainer with the recipe stage2 and an empty cache of kernels, and then with that cache. Each start ends with its first
step: no checkpoint is written.

    python benchmarks/start.py --size 2.7b [--gpus N] [--starts 3] [--frames 60] [--folder DIR]
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.data_inputs import SIZE, write_shards
from benchmarks.loading import write_model
from ma2mba.shards.format import TOKENIZER_FILE

LIMIT_SECONDS = 300


def noise(frames: int) -> list[bytes]:
    """Return JPEG files of noise."""
    random, files = np.random.default_rng(0), []
    for _ in range(frames):
        file = BytesIO()
        Image.fromarray(random.integers(0, 255, (SIZE, SIZE, 3), np.uint8)).save(file, "jpeg")
        files.append(file.getvalue())
    return files


def start(folder: Path, gpus: int, run: str) -> dict[str, Any]:
    """Return the first line of metrics.jsonl of a new run, in which `start_seconds` says where the seconds went."""
    command = [sys.executable, "-m", "ma2mba", "train", "stage2", "data=shards", "init_from=model", f"run={run}"]
    command += [f"global_batch={max(gpus, 1)}", "epochs=null", "steps=2", "--json"]
    command += ["--gpus", str(gpus)] if gpus else []
    paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    own = {"PYTHONPATH": paths, "XDG_CACHE_HOME": str(folder / "cache")}
    process = subprocess.Popen(
        command, cwd=folder, env=os.environ | own, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    timer = threading.Timer(LIMIT_SECONDS, os.killpg, (process.pid, signal.SIGKILL))
    timer.start()
    try:
        assert process.stdout is not None
        return next(json.loads(line) for line in process.stdout if line.startswith("{"))
    finally:
        timer.cancel()
        end(process)


def end(process: subprocess.Popen[str]) -> None:
    """Kill a command and its ranks, which the launcher starts in sessions of their own."""
    below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    for one in (*below, process):
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--size", default="2.7b", help="370m, 1.3b or 2.7b.")
    parser.add_argument("--gpus", type=int, default=0, help="Ranks to start (default: one process, no launcher).")
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--frames", type=int, default=60, help="Frames of each sample.")
    parser.add_argument("--folder", type=Path, default=None, help="Where to write (default: the system's).")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        write_shards(folder / "shards", [noise(options.frames)] * max(2 * options.gpus, 2))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        write_model(options.size, device, folder, folder / "shards" / TOKENIZER_FILE)
        torch.cuda.empty_cache()
        for number in range(options.starts):
            line = start(folder, options.gpus, f"run{number}")
            print(json.dumps({"cache": "warm" if number else "cold", **line["start_seconds"]}), flush=True)


if __name__ == "__main__":
    main()
