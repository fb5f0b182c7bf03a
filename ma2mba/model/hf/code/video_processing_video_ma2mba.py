"""The video processor of a model folder: the frames that `ma2mba ask` shows to the model, as uint8.

`ma2mba export` copies this file, and what it imports of ma2mba, into the folder (`ma2mba/model/hf/bundle.py`). There it
needs transformers, torch, numpy, Pillow and av alone.

N frames, C colours, H and W pixels.
"""

import os
import tempfile
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.feature_extraction_utils import BatchFeature

from ma2mba.errors import UserError
from ma2mba.memory import unlimited
from ma2mba.video.blocks import read_frames
from ma2mba.video.decode import pick
from ma2mba.video.errors import MediaError
from ma2mba.video.pictures import clip_view

try:
    from transformers.video_processing_utils import VideoProcessorMixin
except ImportError:  # in earlier versions of transformers 5
    from transformers.video_processing_utils import BaseVideoProcessor as VideoProcessorMixin

DOWNLOAD_SECONDS = 60
"""Seconds that a server may be silent."""


class VideoMa2mbaVideoProcessor(VideoProcessorMixin):
    """Reads videos as uint8 frames of `size` pixels: `fps` a second (default: 1), or `num_frames` of these frames.

    Frame k is the last one that a viewer has seen at second k / fps. `num_frames` are spaced as numpy.linspace does.
    The model normalises the pixels itself.
    """

    model_input_names = ["pixel_values_videos"]  # noqa: RUF012
    _auto_class = "AutoVideoProcessor"

    def __init__(self, size: Any = None, fps: float = 1.0, num_frames: int | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.size = {"height": 336, "width": 336} if size is None else size
        self.fps, self.num_frames = fps, num_frames

    @property
    def image_size(self) -> int:
        """The height and the width of a frame in pixels."""
        return int(self.size["height"])

    def preprocess(
        self,
        videos: Any,
        *,
        num_frames: int | None = None,
        fps: float | None = None,
        return_tensors: Any = None,
        return_metadata: bool | None = None,
        **_: Any,
    ) -> BatchFeature:
        """Return `pixel_values_videos`: the frames of all videos, one after the other, uint8 (N, C, H, W).

        With `return_metadata`, also `video_metadata`: for each video how many frames it has. Raise MediaError for a
        file that cannot be used, ValueError for other input.
        """
        frames = [self.frames(video, num_frames=num_frames, fps=fps) for video in listed(videos)]
        joined: Any = joined_frames(frames)
        found = {"pixel_values_videos": joined.numpy() if str(return_tensors) in ("np", "TensorType.NUMPY") else joined}
        if return_metadata:
            found["video_metadata"] = [{"total_num_frames": len(one)} for one in frames]
        return BatchFeature(found)

    def frames(self, video: Any, *, num_frames: int | None = None, fps: float | None = None) -> Tensor:
        """Return the frames of one video, uint8 (N, C, H, W).

        `video`: a path or URL of a video or picture, or frames in memory: a uint8 array or tensor (N, H, W, 3) or
        (N, 3, H, W), or a list of pictures. Frames in memory are all kept, or `num_frames` of them.
        """
        number = self.num_frames if num_frames is None else num_frames
        for name, value in (("num_frames", number), ("fps", fps)):
            if value is not None and not (not isinstance(value, bool) and value > 0):
                raise ValueError(f"{name}: {value!r} is not above 0")
        if isinstance(video, str | os.PathLike):
            return self._read(os.fspath(video), number, self.fps if fps is None else fps)
        if fps is not None:
            raise ValueError("fps: frames in memory have no times. Give a file, or num_frames")
        pictures = pick(_pictures(video), number)
        return torch.from_numpy(np.stack([clip_view(one, self.image_size).transpose(2, 0, 1) for one in pictures]))

    def _read(self, name: str, count: int | None, fps: float) -> Tensor:
        """Return the frames of a file or URL. The limits of memory need a process without other threads."""
        with _local(name) as path, nullcontext() if threading.active_count() == 1 else unlimited():
            try:
                found = read_frames(path, self.image_size, fps=fps, count=count)
            except UserError:
                raise
            except MemoryError as error:
                raise MediaError(path, "its frames need more memory than is free", "Use num_frames") from error
            except Exception as error:
                reason = f"cannot be read ({type(error).__name__}: {' '.join(str(error).split())})"
                raise MediaError(path, reason) from error
        if len(found.shown_N) == len(found.pictures_MCHW):  # each picture is one frame: no copy of hours of video
            return torch.from_numpy(found.pictures_MCHW)
        return torch.from_numpy(found.pictures_MCHW[found.shown_N])


def joined_frames(frames: Sequence[Tensor]) -> Tensor:
    """Return the frames of several videos, one after the other; those of one video are not copied."""
    return frames[0] if len(frames) == 1 else torch.cat(list(frames))


def listed(videos: Any) -> list[Any]:
    """Return a list of videos: of one video, of several, or of lists of them. A list of pictures is one video."""
    if _is_video(videos):
        return [videos]
    if isinstance(videos, np.ndarray | Tensor) and videos.ndim == 5:
        return list(videos)
    if not isinstance(videos, list | tuple):
        raise ValueError(f"videos: {type(videos).__name__} is neither a path, nor frames, nor a list of videos")
    return [video for one in videos for video in listed(one)]


def _is_video(value: Any) -> bool:
    if isinstance(value, str | os.PathLike):
        return True
    if isinstance(value, np.ndarray | Tensor):
        return value.ndim == 4
    return isinstance(value, list | tuple) and bool(value) and all(_is_picture(one) for one in value)


def _is_picture(value: Any) -> bool:
    return isinstance(value, Image.Image) or (isinstance(value, np.ndarray | Tensor) and value.ndim == 3)


def _pictures(frames: Any) -> Sequence[np.ndarray]:
    """Return frames in memory as pictures, uint8 (H, W, 3)."""
    pictures = [_picture(one) for one in frames]
    if not pictures:
        raise ValueError("videos: a video without frames")
    return pictures


def _picture(frame: Any) -> np.ndarray:
    if isinstance(frame, Image.Image):
        return np.asarray(frame.convert("RGB"))
    picture = frame.detach().cpu().numpy() if isinstance(frame, Tensor) else np.asarray(frame)
    if picture.dtype != np.uint8:
        raise ValueError(f"videos: frames of {picture.dtype}. Give uint8 from 0 to 255: the model normalises them")
    if picture.shape[-1] != 3 and picture.shape[0] == 3:
        picture = picture.transpose(1, 2, 0)
    if picture.shape[-1] != 3 or 0 in picture.shape:
        raise ValueError(f"videos: a frame of shape {picture.shape}. Give (height, width, 3) or (3, height, width)")
    return np.ascontiguousarray(picture)


@contextmanager
def _local(name: str) -> Iterator[Path]:
    """Yield the path of a file, which is downloaded if `name` is an http(s) URL."""
    scheme = name.split("://", 1)[0].lower() if "://" in name else ""
    if scheme == "file":
        yield Path(urllib.request.url2pathname(urllib.parse.urlsplit(name).path))
    elif scheme in ("http", "https"):
        suffix = Path(urllib.parse.urlsplit(name).path).suffix
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"video{suffix}"
            try:
                with urllib.request.urlopen(name, timeout=DOWNLOAD_SECONDS) as source, open(path, "wb") as target:
                    while block := source.read(1 << 20):
                        target.write(block)
            except OSError as error:
                raise MediaError(name, f"cannot be downloaded ({error})", "Give a file or another URL") from error
            yield path
    else:
        yield Path(name)
