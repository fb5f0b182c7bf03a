"""The process that writes toy videos with needles. It imports no PyTorch, so that it starts fast."""

import multiprocessing
import os
import signal
import threading
from pathlib import Path

import numpy as np
from PIL import Image

from ma2mba.files import atomic_path
from ma2mba.video.synthetic.movie import FPS, Movie, draw_frame, write_movie

VIDEO_FPS = 2
"""Frames per second of the videos. The model sees one frame a second, and more frames only cost time."""


def begin() -> None:
    """Let this process end with its parent, and leave Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


def write_video(movie: Movie, path: Path, picture: Path | None) -> None:
    """Write a video, and to `picture` the first sampled frame that shows its needle."""
    if picture and movie.needle:
        save_picture(draw_frame(movie, movie.needle.seconds[0] * FPS), picture)
    # With one key frame, the reader does not divide the video between processes: that takes less CPU time in all.
    write_movie(movie, path, VIDEO_FPS, key_seconds=movie.seconds)


def save_picture(picture_HWC: np.ndarray, path: Path) -> None:
    """Write a picture as PNG, whole or not at all."""
    with atomic_path(path, sync=False) as temporary:
        Image.fromarray(picture_HWC).save(temporary, format="PNG")
