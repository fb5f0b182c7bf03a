"""Read frames with decord, the decoder that a recipe may choose instead of PyAV. The only file that imports decord.

Before it asks decord for frames, it compares decord's times of all frames with the times in the file's packets. Files
that decord misreads are therefore rejected by name. Whether decord returns the requested frame cannot be checked here
(docs/data.md).
"""

from collections.abc import Callable, Set
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ma2mba.errors import UserError
from ma2mba.video.probe import Probe
from ma2mba.video.pyav import open_video
from ma2mba.video.view import view_of

T = TypeVar("T")
MISREAD = {"mpegts", "mpeg"}
"""Containers without an index: decord 0.6 reports the right times but returns other frames (measured)."""
TOLERANCE = 0.002
"""Largest accepted difference in seconds: decord's times are 32-bit floats (0.0005 s off at two hours)."""


def load_decord() -> Any:
    """Return the decord module. Raise UserError if it is not installed."""
    try:
        import decord
    except ImportError as error:
        raise UserError(
            f"decoder: decord cannot be imported ({error}). Run `pip install 'ma2mba[decord]'` or set decoder: pyav"
        ) from error
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def decode_indices(
    path: Path,
    facts: Probe,
    wanted: Set[int],
    use: Callable[[np.ndarray], T],
    beat: Callable[[], None],
    begin: Callable[[], None],
) -> tuple[dict[int, T], str, str]:
    """Return what `use` returned for each wanted frame number, why frames are missing (""), and what is ignored."""
    decord = load_decord()
    begin()
    used: dict[int, T] = {}
    with open_video(path) as (container, stream):
        if container.format.name in MISREAD:
            return used, f"decord returns wrong frames of {container.format.name} files", ""
        view = view_of(path, container, stream)
        if view.changes(next(container.decode(stream), None)):
            return used, "decord ignores its crop or its mirroring", ""
    try:
        reader = decord.VideoReader(str(path.absolute()), ctx=decord.cpu(0), num_threads=1)
        if mismatch := _mismatch(reader, facts):
            return used, mismatch, ""
        for index in sorted(wanted):
            beat()
            used[index] = use(reader[index].asnumpy())
    except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError) as error:
        return used, f"decord failed after {len(used)} frames ({str(error).strip().splitlines()[-1][:80]})", ""
    return used, "", view.ignored


def _mismatch(reader: Any, facts: Probe) -> str:
    """Return how decord's frames differ from the file's frames in number or time; "" if they agree."""
    if len(reader) != len(facts.pts):
        return f"decord finds {len(reader)} frames, the file has {len(facts.pts)}"
    starts = np.asarray(reader.get_frame_timestamp(range(len(reader))), np.float64)[:, 0]
    times = (np.array(facts.pts) - facts.pts[0]) * float(facts.time_base)
    apart = np.abs((starts - starts[0]) - times)
    if apart.max() > TOLERANCE:
        return f"decord shows frame {int(apart.argmax())} {apart.max():.3f} s away from the file's time"
    return ""
