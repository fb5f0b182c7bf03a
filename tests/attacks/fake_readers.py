"""Stand for a decoder that hangs, crashes, ends its process or takes all memory at any file whose name holds "bad".

Each function is the work of a worker in the place of `read_item`. Small imports: the worker imports this file.
"""

import os
import signal
import time
from collections.abc import Callable

from ma2mba.video import frames

_real = frames.read_blocks


def _attack(how: Callable[[], object], task, begin, beat):
    def read(request, hand_on, beat):
        if "bad" in request.path.name:
            how()
        return _real(request, hand_on, beat)

    frames.read_blocks = read
    return _read_item(task, begin, beat)


_read_item = frames.read_item


def hang(task, begin, beat):
    return _attack(lambda: time.sleep(1000), task, begin, beat)


def crash(task, begin, beat):
    return _attack(lambda: os.kill(os.getpid(), signal.SIGSEGV), task, begin, beat)


def leave(task, begin, beat):
    return _attack(lambda: os._exit(7), task, begin, beat)


def be_killed(task, begin, beat):
    return _attack(lambda: os.kill(os.getpid(), signal.SIGKILL), task, begin, beat)


def stumble(task, begin, beat):
    return _attack(lambda: {}["no\nkey"], task, begin, beat)


def allocate(task, begin, beat):
    return _attack(_allocate, task, begin, beat)


def _allocate():
    held = []
    while True:
        held.append(bytearray(b"x" * (16 << 20)))


ATTACKS = {
    hang: "made no progress for 2 s",
    crash: "the decoder crashed (SIGSEGV)",
    leave: "the decoder crashed (exit code 7)",
    be_killed: "a worker was killed (SIGKILL)",
    stumble: r"cannot be read (KeyError: 'no\nkey')",
    allocate: "decoding it takes more than 0.2 GB of memory",
}
"""Each attack, and what its refusal says."""
