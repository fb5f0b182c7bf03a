"""The deepspeed launcher, with a cluster's signals handed to its ranks, and a port for rank 0 to listen on.

On SIGTERM that launcher ends at once and leaves its ranks behind, or kills them 30 seconds later; here SIGTERM and
SIGUSR1 ask the ranks to save and end, and the exit code is theirs: 0.
"""

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil

PORTS = range(10000, 20000)
"""Below those that Linux gives to whoever asks for any (32768 and above), and below those of launch/slurm.sbatch."""


def run_launcher(arguments: Sequence[str]) -> int:
    """Run `deepspeed` with these arguments and hand SIGTERM and SIGUSR1 to its ranks. Returns its exit code."""
    launcher = Path(sys.executable).with_name("deepspeed")
    # In a session of its own, so that a signal to this process group reaches nobody but this process.
    process = subprocess.Popen([sys.executable, str(launcher), *arguments], start_new_session=True)

    def ask_ranks(number: int, frame: FrameType | None) -> None:
        ranks = ranks_of(process.pid)
        print(f"{signal.Signals(number).name}: asking {len(ranks)} ranks to save and end", file=sys.stderr, flush=True)
        ask(ranks, number)
        if not ranks:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)

    def stop(number: int, frame: FrameType | None) -> None:
        os.killpg(process.pid, number)

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, ask_ranks)
    signal.signal(signal.SIGINT, stop)
    return process.wait()


def ask(ranks: list[psutil.Process], number: int) -> None:
    """Send all a signal; one that has ended meanwhile needs none."""
    for rank in ranks:
        with suppress(psutil.NoSuchProcess):
            rank.send_signal(number)


def ranks_of(launcher: int) -> list[psutil.Process]:
    """The processes below the launcher that are ranks, on this machine."""
    return [p for p in psutil.Process(launcher).children(recursive=True) if is_rank(p)]


def is_rank(process: psutil.Process) -> bool:
    try:
        return any(word.startswith("--local_rank=") for word in process.cmdline())
    except psutil.Error:
        return False


def free_port() -> int:
    """A port of this machine that nobody listens on, nor will by chance before rank 0 does.

    Raises OSError when there is none.
    """
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):  # processes with equal seeds get different ones
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise OSError(f"no port from {PORTS[0]} to {PORTS[-1]} is free")
