"""A stream of what a list says, in place of a decoder. Small imports: the worker imports this file."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ma2mba.video.decode import Plan
from ma2mba.video.errors import MediaError
from ma2mba.video.messages import Block, Request
from ma2mba.video.pool import Pool
from ma2mba.video.stream import VideoStream

SIZE = 56
NAME = Path("a.mp4")


def plan(frames: int, pictures: int) -> Plan:
    """Return a plan of a frame a second, of which the last ones show the last picture."""
    return Plan(np.arange(frames) / 1.0, np.minimum(np.arange(frames), pictures - 1), float(frames))


def block(first: int, count: int, colour: int = 0) -> Block:
    """Return pictures of one colour each: `colour` for picture 0, one more for each next picture."""
    colours_M = np.arange(first + colour, first + colour + count, dtype=np.uint8)
    return Block(first, np.ascontiguousarray(np.broadcast_to(colours_M[:, None, None, None], (count, 3, SIZE, SIZE))))


@dataclass(frozen=True)
class Script(Request):
    """What a worker sends."""

    items: tuple[Plan | Block | str, ...] = ()


class FakeStream:
    """Gives a stream of plans and blocks; "error" stands for a damaged file, "crash" for the end of the worker."""

    def __init__(self, *items: Plan | Block | str, keep_damaged: bool = False):
        self.pool = Pool(_send, 1, 1 << 30)
        self.stream = VideoStream(Script(NAME, SIZE, items=items, keep_damaged=keep_damaged), self.pool, 30.0)

    def __enter__(self) -> VideoStream:
        return self.stream

    def __exit__(self, *_: object) -> None:
        self.stream.close()
        self.pool.close()


def _send(task, begin, beat):
    begin(0)
    for item in task.items[0].items:
        if task.given_up:
            return MediaError(NAME, task.given_up[0])
        if item == "crash":
            os._exit(7)
        if item == "error":
            return MediaError(NAME, "damaged", partial=3.0)
        beat(item)
    begin(1)
    return None
