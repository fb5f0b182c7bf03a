"""Put the pictures of pieces that several workers decode in order, and compare neighbouring pieces."""

import hashlib
from collections import defaultdict, deque
from collections.abc import Sequence

import numpy as np

from ma2mba.video.messages import Block, Joint, Piece
from ma2mba.video.seek import Doubt


def digest_of(picture_CHW: np.ndarray) -> bytes:
    """Return a digest of the pixels of one picture."""
    return hashlib.blake2b(picture_CHW.tobytes()).digest()


class Pieces:
    """Holds the blocks of pieces until it is their turn; `window` pieces from the current one on may be decoded."""

    def __init__(self, pieces: Sequence[Piece], window: int):
        self._pieces, self._window = pieces, window
        self._current, self._digest = 0, b""
        self._turned = frozenset[bytes]()
        self._blocks: dict[int, deque[Block]] = defaultdict(deque)
        self._received = [piece.first for piece in pieces]
        self._joints: dict[int, Joint] = {}

    def allowed(self, number: int) -> bool:
        """Return True if piece `number` may be decoded now."""
        return number < self._current + self._window

    @property
    def ended(self) -> bool:
        return self._current == len(self._pieces)

    def add(self, number: int, block: Block) -> None:
        """Add the next block of a piece. A piece that a new worker decodes again sends its blocks again."""
        if block.first == self._received[number]:
            self._blocks[number].append(block)
            self._received[number] += len(block.pictures_MCHW)

    def end(self, number: int, joint: Joint) -> None:
        """Note that all blocks of a piece were added."""
        self._joints[number] = joint

    def take(self) -> Block | None:
        """Return the next block in order; None if it is not there. Raise Doubt if two pieces disagree."""
        while not self.ended:
            if self._blocks[self._current]:
                block = self._blocks[self._current].popleft()
                if self._digest and digest_of(block.pictures_MCHW[0]) != self._digest:
                    raise Doubt
                self._digest = b""
                return block
            if self._current not in self._joints:
                return None
            joint = self._joints.pop(self._current)
            self._digest, self._turned = joint.digest, self._turned | joint.turned
            if len(self._turned) > 1:
                raise Doubt
            del self._blocks[self._current]
            self._current += 1
        return None
