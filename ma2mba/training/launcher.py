"""Start the ranks of a run with the deepspeed launcher, and pass signals on to them.

On SIGTERM the deepspeed launcher ends at once and leaves its ranks running, or kills them after 30 seconds. Here
SIGTERM and SIGUSR1 reach the ranks: they save a checkpoint and end, and the exit code is 0.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil

from ma2mba.terminal import Arguments, write_error
from ma2mba.training import nodes
from ma2mba.training.ports import choose_port
from ma2mba.training.start_clock import announced

RANK_MODULE = "ma2mba.training.rank"


def launch(arguments: Sequence[str], gpus: int | None = None, hostfile: Path | None = None) -> int:
    """Train on `gpus` ranks of this machine, or on the nodes of `hostfile`; return the exit code.

    Each rank receives `arguments`: the recipe, its overrides, --verbose. Raise UserError if the hostfile or a variable
    of the environment is wrong (`nodes.options`).
    """
    count = ["--num_gpus", str(gpus)] if gpus else []
    if hostfile is None:
        quiet = [] if "--verbose" in arguments else ["--quiet"]  # else DeepSpeed logs 15 lines before the first step
        options = [*quiet, *count, "--master_port", choose_port(os.environ)]
        return run_launcher([*options, "--module", RANK_MODULE, *arguments])
    options = [*nodes.options(hostfile, os.environ), *count, "--module", RANK_MODULE]
    with nodes.variables(os.environ) as environment:
        return run_launcher([*options, *arguments], environment)


def run_launcher(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
    """Run `deepspeed` with these arguments, pass SIGTERM and SIGUSR1 on to its ranks, and return its exit code.

    Raise UserError if a hostfile is wrong: deepspeed trains nothing, or on this host alone, and ends with exit code 0.
    """
    for hostfile in hostfiles(arguments):
        nodes.slots(hostfile)
    launcher = Path(sys.executable).with_name("deepspeed")
    # In a session of its own, so that a signal to this process group reaches only this process.
    command = [sys.executable, str(launcher), *arguments]
    process = subprocess.Popen(command, env=announced(environment), start_new_session=True)

    def ask_ranks(number: int, frame: FrameType | None) -> None:
        ranks = ranks_of(process.pid)
        write_error(f"{signal.Signals(number).name}: asking {len(ranks)} ranks to save and stop\n")
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


def hostfiles(arguments: Sequence[str]) -> list[Path]:
    """Return the hostfiles that the arguments of `deepspeed` name."""
    parser = Arguments(add_help=False, allow_abbrev=False)
    parser.add_argument("-H", "--hostfile", type=Path, action="append", default=[])
    return parser.parse_known_args(list(arguments))[0].hostfile


def ask(ranks: list[psutil.Process], number: int) -> None:
    """Send a signal to every rank that still runs."""
    for rank in ranks:
        with suppress(psutil.NoSuchProcess):
            rank.send_signal(number)


def ranks_of(launcher: int) -> list[psutil.Process]:
    """Return the ranks that the launcher has started on this machine."""
    return [p for p in psutil.Process(launcher).children(recursive=True) if is_rank(p)]


def is_rank(process: psutil.Process) -> bool:
    """Return True for a process that the deepspeed launcher has started as a rank."""
    try:
        return any(word.startswith("--local_rank=") for word in process.cmdline())
    except psutil.Error:
        return False
