"""The frames of a batch, read from the shards when a chunk requests them.

N frames of a batch, F frames of one request. A frame is uint8 (3, H, W), or encoder features bf16 (K, V): K tokens of a
frame, V width of the vision encoder.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any, Protocol

import numpy as np
import simplejpeg
import torch
from torch import Tensor

from ma2mba.errors import UserError


def picture_problem(jpeg: bytes, image_size: int) -> str:
    """Return why bytes are not a JPEG of image_size x image_size pixels, by its header; "" if they are."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg)
    except ValueError as error:
        return f"is not a JPEG image ({error})"
    if (height, width) != (image_size, image_size):
        return f"has {width}x{height} pixels, but the manifest says {image_size}x{image_size}"
    return ""


def features_problem(frame: bytes | bytearray) -> str:
    """Return why the bytes of bf16 features are not finite numbers; "" if they are."""
    bits = np.frombuffer(frame, np.uint16) & 0x7FFF
    return "has features that are not finite" if bits.max(initial=0) >= 0x7F80 else ""


def decode_picture(jpeg: bytes, image_size: int, name: str) -> np.ndarray:
    """Decode a stored frame, uint8 (H, W, 3). Raise UserError with its `name` if it is damaged or has another size.

    The size is compared before memory is taken: a JPEG of a few bytes may state billions of pixels.
    """
    problem = picture_problem(jpeg, image_size)
    if not problem:
        try:
            return simplejpeg.decode_jpeg(jpeg, colorspace="RGB", strict=True)
        except ValueError as error:
            problem = f"is not a JPEG image ({error})"
    raise UserError(f"{name} {problem}. Build the shards again")


class FrameSource(Protocol):
    """The frames of one sample: `source[a:b]` returns a tensor (b - a, ...). A tensor in memory is a FrameSource."""

    def __len__(self) -> int: ...

    def __getitem__(self, at: slice, /) -> Tensor: ...


class Frames:
    """The frames of several samples, numbered 0..N-1 across the samples.

    Only requested frames are in memory. `waited` is how many seconds requests have waited so far.
    """

    def __init__(self, sources: Sequence[Any]):
        self._sources: list[FrameSource] = [torch.from_numpy(s) if isinstance(s, np.ndarray) else s for s in sources]
        self._ends = np.cumsum([len(source) for source in self._sources])
        self._in_memory = all(isinstance(source, Tensor) for source in self._sources)
        self._expected: tuple[Tensor, Future[Tensor]] | None = None
        self.waited = 0.0

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, numbers_F: Tensor) -> Tensor:
        """Return the frames with these numbers (int64, ascending). Raise UserError if their bytes were altered."""
        started = time.perf_counter()
        expected, self._expected = self._expected, None
        if expected is not None and torch.equal(expected[0], numbers_F):
            found = expected[1].result()
        elif expected is not None and torch.isin(numbers_F, expected[0]).all():
            found = expected[1].result()[torch.searchsorted(expected[0], numbers_F)]
        else:
            found = self._read(numbers_F)
        self.waited += time.perf_counter() - started
        return found

    def expect(self, numbers_F: Tensor) -> None:
        """Read these frames in the background for the next request. A later call replaces an earlier one."""
        if not self._in_memory:
            self._expected = (numbers_F, _background().submit(self._read, numbers_F))

    def prime(self, count: int) -> None:
        """Read the first `count` frames now, for the first request."""
        if not self._in_memory:
            numbers_F, done = torch.arange(min(count, len(self))), Future[Tensor]()
            done.set_result(self._read(numbers_F))
            self._expected = (numbers_F, done)

    def all(self) -> Tensor:
        """Return all frames. Only for small batches: all frames are in memory at once."""
        return self._read(torch.arange(len(self)))

    def _read(self, numbers_F: Tensor) -> Tensor:
        numbers = numbers_F.numpy()
        runs = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1) if len(numbers) else []
        pieces = [piece for run in runs for piece in self._read_run(int(run[0]), int(run[-1]) + 1)]
        if len(pieces) == 1:
            return pieces[0]
        return torch.cat(pieces) if pieces else self._sources[0][0:0]

    def _read_run(self, start: int, stop: int) -> list[Tensor]:
        pieces = []
        for source, end in zip(self._sources, self._ends, strict=True):
            first = int(end) - len(source)
            low, high = max(start, first), min(stop, int(end))
            if low < high:
                pieces.append(source[low - first : high - first])
        return pieces


@cache
def _background() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="ma2mba-frames")
