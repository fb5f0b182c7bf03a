"""The deepspeed launcher, with a cluster's signals handed to its ranks: launch/run.py [options] launch/train.py ...

Arguments are those of `deepspeed`. On SIGTERM that launcher ends at once and leaves its ranks behind, or kills them 30
seconds later; here SIGTERM and SIGUSR1 ask the ranks to save and end, and the exit code is theirs: 0.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil


def main() -> int:
    launcher = Path(sys.executable).with_name("deepspeed")
    # In a session of its own, so that a signal to this process group reaches nobody but this process.
    process = subprocess.Popen([sys.executable, str(launcher), *sys.argv[1:]], start_new_session=True)

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


if __name__ == "__main__":
    sys.exit(main())
