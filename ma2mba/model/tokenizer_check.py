"""Load a tokenizer.json from a stranger: tried first in a process of its own, with limits of memory and time.

A tokenizer is a program: its patterns may take for ever, its replacements may multiply a text, and its library ends the
process when memory is missing. What the trial cannot know is how it behaves on text that is unlike the probes.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from tokenizers import Tokenizer

from ma2mba.errors import UserError
from ma2mba.files import read_bounded
from ma2mba.limits import limits, raise_limit
from ma2mba.text import shorten

PROBE = Path(__file__).with_name("tokenizer_probe.py")
CHECKED = "MA2MBA_CHECKED_TOKENIZERS"
"""The environment variable that names what this process or a process above has tried: SHA-256, joined by commas."""
MEMORY, TIMES_FILE = 600 << 20, 20
"""Bytes that a trial may use, and how many times the file's size besides."""
CPU_SECONDS, BYTES_A_SECOND, WALL_SECONDS = 10, 4 << 20, 120
"""Processor time that a trial may use, for how many bytes of the file it may use a second more, and time in all."""


def read_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer of a file. Raise UserError if it cannot be read or loaded, or if its trial fails."""
    most = int(limits().text_mb * 1e6)
    if path.is_file() and path.stat().st_size > most:
        raise UserError(f"{path}: larger than {limits().text_mb:g} MB. {raise_limit('text_mb')}")
    content = read_bounded(path, most)
    digest = hashlib.sha256(content).hexdigest()
    checked = os.environ.get(CHECKED, "")
    if digest not in checked:
        if fault := _try(content):
            reason = shorten(" ".join(fault.split()), 400)
            raise UserError(f"{path}: not a tokenizer.json to use: {reason}. Save one with tokenizers' Tokenizer.save")
        os.environ[CHECKED] = f"{checked},{digest}".strip(",")
    return Tokenizer.from_buffer(content)


def _try(content: bytes) -> str | None:
    """Return what is wrong with a tokenizer, None if nothing is."""
    memory = MEMORY + TIMES_FILE * len(content)
    seconds = CPU_SECONDS + len(content) // BYTES_A_SECOND
    command = [sys.executable, "-P", str(PROBE), str(memory), str(seconds)]
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "RUST_BACKTRACE": "0"}
    try:
        done = subprocess.run(
            command, input=content, capture_output=True, env=environment, timeout=WALL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"it does not end within {WALL_SECONDS} s on short text"
    if done.returncode < 0 and b"memory" in done.stderr:
        return f"it needs more than {memory / 1e6:,.0f} MB for short text"
    if done.returncode < 0:
        return f"it does not end within {seconds} s on short text (signal {-done.returncode})"
    try:
        fault = json.loads(done.stdout)
    except ValueError:
        return f"its trial failed ({done.stderr.decode(errors='backslashreplace')[-300:]})"
    return fault if fault is None else str(fault)
