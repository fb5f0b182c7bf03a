"""Start the trainer as a user does, with the launcher or without."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from ma2mba.training.ports import free_port
from tests.tiny import TINY_MODEL

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 480

RECIPE = {
    "stage": "stage2",
    "data": "shards",
    "run": "run",
    "model": TINY_MODEL,
    "trainable": {"projector": 2e-3, "language_model": 2e-3, "vision": 1e-3},
    "global_batch": 4,
    "micro_batch": 2,
    "steps": 9,
    "precision": "fp32",
    "magc": {"chunk_tokens": 16},
    "checkpoint": {"every": 3, "keep_last": None},
    "log_every": 1,
}


TRAINER = ROOT / "launch" / "train.py"


def command(ranks: int, *overrides: str, script: Path = TRAINER) -> list[str]:
    """Return the command: this environment's `deepspeed` for `ranks` ranks, or for ranks=0 a single plain process."""
    arguments = [str(script), "recipe.yaml", *overrides]
    if not ranks:
        return [sys.executable, *arguments]
    launcher = Path(sys.executable).with_name("deepspeed")
    return [sys.executable, str(launcher), "--num_gpus", str(ranks), "--master_port", str(free_port()), *arguments]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


@contextmanager
def running(arguments: list[str], folder: Path, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Start a process in `folder`, with stderr in stdout. At the end kill it and everything that it started."""
    process = subprocess.Popen(
        arguments,
        cwd=folder,
        env=environment() | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        kill_all(process)


def kill_all(process: subprocess.Popen) -> None:
    """Kill the session that a process leads, and what it has started in other sessions."""
    below = []
    with suppress(psutil.NoSuchProcess):
        below = psutil.Process(process.pid).children(recursive=True)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for other in below:
        with suppress(psutil.NoSuchProcess):
            other.kill()
    process.wait()


def finished(
    arguments: list[str], folder: Path, timeout: float = TIMEOUT_SECONDS, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to the end in `folder`; stdout has both streams."""
    with running(arguments, folder, **variables) as process:
        said, _ = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(arguments, process.returncode, said)


def launch(folder: Path, ranks: int, *overrides: str, script: Path = TRAINER) -> subprocess.CompletedProcess[str]:
    """Train to the end in `folder`; stdout has both streams."""
    return finished(command(ranks, *overrides, script=script), folder)


def train(folder: Path, ranks: int, *overrides: str) -> str:
    """Train, expect exit code 0, and return the output."""
    done = launch(folder, ranks, *overrides)
    assert done.returncode == 0, done.stdout
    return done.stdout


def curve(run: Path, key: str = "loss") -> list[float]:
    """Return one number for each step; no step may be missing or repeated."""
    steps = lines(run, "step")
    assert steps == list(range(1, len(steps) + 1))
    return lines(run, key)


def lines(run: Path, key: str) -> list[float]:
    """Return the numbers of metrics.jsonl. A run that resumes from another run's checkpoint begins later."""
    return [json.loads(line)[key] for line in (run / "metrics.jsonl").read_text().splitlines()]
