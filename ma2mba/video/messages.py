"""What a reader of videos and its worker processes send each other."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ma2mba.video.stretches import Stretch


@dataclass(frozen=True)
class Request:
    """What to read. A relative `path` counts from `folder`. With `picture_rate`, it is a folder of pictures.

    `held`: the reader holds all pictures at once. `keep_damaged`: send the pictures before the damage of a damaged
    video, then the reason. `seek`: reach a few frames of a long video by seeking. `workers`: the most
    processes that decode pieces of a long video at the same time.
    """

    path: Path
    image_size: int
    fps: float = 1.0
    count: int | None = None
    start: float | None = None
    stop: float | None = None
    picture_rate: float | None = None
    folder: str = "."
    held: bool = True
    keep_damaged: bool = False
    seek: bool = True
    workers: int = 1


@dataclass(frozen=True)
class Block:
    """Pictures `first`, `first` + 1, ... of a plan, uint8 RGB."""

    first: int
    pictures_MCHW: np.ndarray


@dataclass(frozen=True)
class Piece:
    """A part of a request: the pictures `first`, `first` + 1, ... before `stop` of its plan.

    The stretch also has the first picture of the next piece, except in the last piece. Both workers decode it.
    """

    request: Request
    stretch: Stretch
    first: int
    stop: int


@dataclass(frozen=True)
class Joint:
    """What must agree between neighbouring pieces.

    `digest`: of the next piece's first picture as this piece decodes it; b"" in the last piece. `turned`: the display
    matrices of all pictures.
    """

    digest: bytes
    turned: frozenset[bytes]
