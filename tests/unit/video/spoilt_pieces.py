"""Workers in the place of `read_item` whose third piece goes wrong. Small imports: the workers import this file."""

import os
from dataclasses import replace

from ma2mba.video.frames import read_item
from ma2mba.video.messages import Joint, Piece
from ma2mba.video.seek import Doubt

BAD = 2


def _bad(task) -> bool:
    return isinstance(task.items[0], Piece) and task.number == BAD


def other_pixels(task, begin, beat):
    """Change one pixel of the piece's first picture."""

    def spoil(block=None):
        if _bad(task) and block is not None and block.first == task.items[0].first:
            block.pictures_MCHW[0, 0, 0, 0] ^= 1
        beat(block)

    return read_item(task, begin, spoil)


def turned(task, begin, beat):
    """State another display matrix."""
    result = read_item(task, begin, beat)
    return replace(result, turned=frozenset([b"turned"])) if _bad(task) and isinstance(result, Joint) else result


def doubtful(task, begin, beat):
    return Doubt() if _bad(task) else read_item(task, begin, beat)


def crash(task, begin, beat):
    begin(0)
    if _bad(task) and not task.given_up:
        os._exit(7)
    return read_item(task, begin, beat)
