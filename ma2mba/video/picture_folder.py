"""Read a folder of pictures as a video: data sets publish some videos as numbered frames."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ma2mba.files import inside
from ma2mba.limits import limits, raise_limit
from ma2mba.video.decode import Plan, pick, sample_times
from ma2mba.video.errors import MediaError, folder_size
from ma2mba.video.messages import Request
from ma2mba.video.pictures import IMAGE_SUFFIXES, read_image

NUMBERS = re.compile(r"(\d+)")


def read_picture_folder(
    request: Request,
    use: Callable[[np.ndarray], None],
    beat: Callable[[], None],
    announce: Callable[[Plan], None],
) -> None:
    """Pass the plan of a folder's sampled pictures to `announce`, then each picture to `use`, RGB uint8 (H, W, 3).

    Picture k, in the order of the numbers in the names, is shown from second k / rate on. Raise MediaError if the
    folder holds no picture in the requested seconds, or if a sampled picture cannot be read.
    """
    assert request.picture_rate
    names = picture_names(request.path)
    duration = len(names) / request.picture_rate
    if duration > limits().video_hours * 3600:
        raise MediaError(request.path, f"its pictures last {duration:,.0f} s", raise_limit("video_hours"))
    times = pick(sample_times(duration, request.fps, request.start, request.stop), request.count)
    if not times:
        raise MediaError(request.path, f"lasts {duration:.2f} s: no picture in the requested range")
    shown = [min(int(float(t) * request.picture_rate + 1e-6), len(names) - 1) for t in times]
    numbers, shown_N = np.unique(np.array(shown, np.int64), return_inverse=True)
    announce(Plan(np.array(times, np.float64), shown_N.astype(np.int64), duration))
    for number in numbers:
        beat()
        use(read_image(inside(request.path, names[number], request.path)))


def picture_names(folder: Path) -> list[str]:
    """Return the names of a folder's pictures; "img_2.jpg" comes before "img_10.jpg". Other files do not count."""
    folder_size(folder)
    try:
        names = [name for name in os.listdir(folder) if Path(name).suffix.lower() in IMAGE_SUFFIXES]
    except OSError as error:
        raise MediaError(folder, f"cannot be opened ({error.strerror})") from error
    if not names:
        raise MediaError(folder, "holds no picture", "Give the folder of the video's pictures")
    return sorted(names, key=_in_order)


def _in_order(name: str) -> tuple[list[str | int], str]:
    return [int(part) if part.isdigit() else part for part in NUMBERS.split(name)], name
