"""The door to decord, the decoder that a recipe may name instead of PyAV.

decord is asked for a frame only when its own times of all frames agree with those of the file's packets, so what it
misreads is rejected by name. That it returns the frame it was asked for cannot be checked here (docs/data.md).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ma2mba.errors import UserError
from ma2mba.video.probe import Probe, open_video

T = TypeVar("T")
MISREAD = {"mpegts", "mpeg"}
"""Containers without an index, in which decord 0.6 claims the right times and returns other frames (measured)."""
TOLERANCE = 0.002
"""Seconds by which two times of one frame may differ: decord gives 32-bit floats (0.0005 s at two hours)."""


def load_decord() -> Any:
    """The decord module. Raises UserError when it is not installed."""
    try:
        import decord
    except ImportError as error:
        raise UserError(
            f"decoder: decord cannot be imported ({error}); run `pip install 'ma2mba[decord]'` or set decoder: pyav"
        ) from error
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def decode_indices(
    path: Path, facts: Probe, indices: Sequence[int], use: Callable[[np.ndarray], T], beat: Callable[[], None]
) -> tuple[dict[int, T], str]:
    """Map the pts of each frame of `indices` to what `use` made of it, and say what stopped that, if anything."""
    decord = load_decord()
    used: dict[int, T] = {}
    with open_video(path) as (container, _):
        if container.format.name in MISREAD:
            return used, f"decord returns wrong frames of {container.format.name} files"
    try:
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        if problem := _disagreement(reader, facts):
            return used, problem
        for index in sorted(set(indices)):
            beat()
            used[facts.pts[index]] = use(reader[index].asnumpy())
    except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError) as error:
        return used, f"decord cannot go on after {len(used)} frames ({str(error).strip().splitlines()[-1][:80]})"
    return used, ""


def _disagreement(reader: Any, facts: Probe) -> str:
    """In what decord's frames are not the file's."""
    if len(reader) != len(facts.pts):
        return f"decord finds {len(reader)} frames, the file has {len(facts.pts)}"
    starts = np.asarray(reader.get_frame_timestamp(range(len(reader))), np.float64)[:, 0]
    times = (np.array(facts.pts) - facts.pts[0]) * float(facts.time_base)
    apart = np.abs((starts - starts[0]) - times)
    if apart.max() > TOLERANCE:
        return f"decord shows frame {int(apart.argmax())} {apart.max():.3f} s away from the file's time"
    return ""
