"""Streams for tests: MPEG-TS files, files that grow, and a standard input that a thread writes."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

from tests.unit.video.numbered_video import write

TICKS = Fraction(1, 90000)


def mpegts(path: Path, seconds: float = 8, fps: int = 5, **options) -> Path:
    """Write a stream of H.264 with B-frames, a frame every 1/fps seconds, which starts at 100 s."""
    stamps = [900_000 * 10 + round(90_000 * k / fps) for k in range(round(seconds * fps))]
    write(path, stamps, TICKS, format="mpegts", **options)
    return path


@contextmanager
def growing(whole: Path, path: Path, pieces: int = 7, pause: float = 0.15) -> Iterator[Path]:
    """Let a thread append the bytes of a file to another one, piece by piece."""
    content = whole.read_bytes()
    step = len(content) // pieces + 1
    path.touch()

    def append() -> None:
        for at in range(0, len(content), step):
            time.sleep(pause)
            with open(path, "ab") as file:
                file.write(content[at : at + step])

    thread = threading.Thread(target=append)
    thread.start()
    yield path
    thread.join()


@contextmanager
def piped(content: bytes) -> Iterator[Callable[[], int]]:
    """Let a thread write bytes to this process's standard input. Give a function that says how many it has written."""
    ours, theirs = os.pipe()
    before = os.dup(0)
    os.dup2(ours, 0)
    os.close(ours)

    def send() -> None:
        nonlocal sent
        with open(theirs, "wb", buffering=0) as pipe:
            while sent < len(content):
                sent += pipe.write(content[sent : sent + 4096])

    sent = 0
    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield lambda: sent
    finally:
        os.dup2(before, 0)
        os.close(before)
        thread.join()
