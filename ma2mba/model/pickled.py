"""Convert pickled checkpoints (pytorch_model.bin) to safetensors: a pickle can run code, so a child reads it.

The child has bounded memory and time, and loads tensors alone (`unpickle.py`).
"""

import fcntl
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import xxhash

from ma2mba.errors import UserError
from ma2mba.files import atomic_path, inside, open_regular, writing
from ma2mba.model.tensor_file import TensorFile, reason_of
from ma2mba.model.weights import INDEX, WEIGHTS, Weights, listed, open_weights
from ma2mba.text import parse_json

PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
EXTRA_BYTES = 1 << 30
"""Bytes that the child may take beyond what it holds at its start and the size of the checkpoint."""
START_SECONDS, READ_SECONDS, BYTES_PER_SECOND = 120.0, 30.0, 10e6
"""Limits of the child: to start, and to read and write, longer for large files."""

_START = """
import json, sys
sys.path[:] = json.loads(sys.argv.pop(1))
from ma2mba.model.unpickle import main
main()
"""
"""The program of the child. It runs with -P: by default, Python would import modules from the current folder."""

Convert = Callable[[Path], Path]
"""Returns the safetensors file with the tensors of a pickled checkpoint."""


def open_any(file_in: Callable[[str], Path], convert: Convert) -> Weights:
    """Open the weights of a folder: safetensors, or else a pickled checkpoint, which `convert` converts.

    `file_in(name)` returns the path of a file of the folder. Raise UserError if there are none, or if they are damaged.
    """
    if any(os.path.lexists(file_in(name)) for name in (WEIGHTS, INDEX)):
        return open_weights(file_in)
    if os.path.lexists(file_in(PICKLE)):
        return _converted(file_in(PICKLE), convert)
    index = file_in(PICKLE_INDEX)
    if not os.path.lexists(index):
        raise UserError(f"{index.parent}: has no {WEIGHTS} and no {PICKLE}. Give a folder with the weights")
    parts = [_converted(file_in(name), convert) for name in sorted(listed(index))]
    return Weights(index, {name: stored for part in parts for name, stored in part.tensors.items()})


def _converted(path: Path, convert: Convert) -> Weights:
    """Open a converted checkpoint under all names that its tensors have. Messages name the checkpoint itself."""
    file = TensorFile.open(convert(path))
    tensors = file.tensors
    same = parse_json(file.header.get("__metadata__", {}).get("same", "{}"))
    return Weights(path, tensors | {name: tensors[other] for name, other in same.items()})


def convert_in(folder: Path) -> Convert:
    """Return a function that converts checkpoints to files in `folder`, a folder that the caller removes."""

    def convert(path: Path) -> Path:
        target = inside(folder, f"{path.name}.safetensors", path)
        convert_pickle(path, target)
        return target

    return convert


def convert_to_cache(path: Path) -> Path:
    """Convert a checkpoint, once: the file is kept in a cache (`cache_folder`). Processes wait for each other."""
    path, status, folder = path.resolve(), path.stat(), cache_folder()
    name = xxhash.xxh3_64_hexdigest(f"{path}\0{status.st_size}\0{status.st_mtime_ns}".encode())
    target = folder / f"{name}.safetensors"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                with atomic_path(target) as temporary:
                    convert_pickle(path, temporary)
    return target


def cache_folder() -> Path:
    """Return the folder of converted checkpoints: $XDG_CACHE_HOME/ma2mba/weights, normally in ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ma2mba" / "weights"


def convert_pickle(path: Path, target: Path) -> None:
    """Write the tensors of a pickled checkpoint to `target`. Raise UserError that names the file if it is refused."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
    imports = json.dumps([place for place in sys.path if place])
    command = [sys.executable, "-P", "-c", _START, imports, str(path.absolute()), str(target), str(EXTRA_BYTES)]
    child = subprocess.Popen(
        command, bufsize=0, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert child.stdout is not None
        with child.stdout as answers:
            answer = _line(child, answers, START_SECONDS)
            if answer == "started":
                answer = _line(child, answers, READ_SECONDS + size / BYTES_PER_SECOND)
    finally:
        child.kill()
        child.wait()
    if answer != "ok":
        target.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be converted ({reason_of(answer)}). Get the file again, from its publisher")


def _line(child: "subprocess.Popen[bytes]", answers: IO[bytes], seconds: float) -> str:
    """Return the child's next line; or why there is none. `answers` is its pipe, which has no buffer here."""
    line, until = b"", time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(answers, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(0.0, until - time.monotonic())):
                return f"reading it took longer than {seconds:,.0f} s"
            letter = answers.read(1)
            if not letter:
                return f"the process that read it ended ({_ending(child.wait())})"
            line += letter
    return line.decode(errors="replace").strip()


def _ending(code: int) -> str:
    return signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"
