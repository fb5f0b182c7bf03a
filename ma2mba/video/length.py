"""How long a media file says that it lasts, without decoding it."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av

from ma2mba.errors import UserError
from ma2mba.limits import PREFIX, limits
from ma2mba.video.animation import is_animated_webp, is_animation, webp_times
from ma2mba.video.errors import MediaError, reading_memory
from ma2mba.video.pictures import read_image
from ma2mba.video.pool import Beat, Task
from ma2mba.video.probe import clock_of, frame_ticks, probe
from ma2mba.video.pyav import open_video, time_base

Kind = Literal["video", "image"]
PICTURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM")
"""How JPEG, PNG and BMP begin. WebP begins with RIFF, as AVI does."""


@dataclass(frozen=True)
class Length:
    """What a media file is, how many seconds it lasts (0 for an image), and how it is damaged ("": it is intact)."""

    kind: Kind
    seconds: float
    damage: str = ""


@dataclass(frozen=True)
class Wanted:
    """A media file to measure, and how many hours a video may last."""

    path: Path
    kind: Kind | None
    hours: float


def measure_item(task: Task, begin: Callable[[int], None], beat: Beat) -> Length | UserError:
    """Measure the one Wanted of a task in a worker process. Return its length, or why the file cannot be used."""
    wanted: Wanted = task.items[0]
    begin(0)
    try:
        if task.given_up:
            return MediaError(wanted.path, task.given_up[0])
        os.environ[f"{PREFIX}VIDEO_HOURS"] = repr(wanted.hours)  # of this worker: a longer video is not read to its end
        limits.cache_clear()
        return media_length(wanted.path, wanted.kind, beat)
    except UserError as error:
        return error
    except MemoryError:
        return MediaError(wanted.path, f"reading it takes more than {limits().decoder_gb:g} GB of memory", PREFIX)
    except Exception as error:  # the last guard: whatever a library raises for a file must not end the server
        return MediaError(wanted.path, f"cannot be read ({type(error).__name__}: {error})")
    finally:
        begin(1)


def media_length(path: Path, kind: Kind | None, beat: Callable[[], None] = lambda: None) -> Length:
    """Read a file's packets, or an image, and return what it is. None: an image or a video, as the bytes say.

    An animated PNG or WebP is a video, whatever `kind` says, because its frames are read as a video's.
    Raise MediaError if it is unreadable, or exceeds limits(). Times that the packets do not state are estimated:
    decoding a video finds the exact times.
    """
    picture = _begins_as_picture(path) if kind is None else kind == "image"
    if picture and not is_animation(path):
        read_image(path)
        return Length("image", 0.0)
    found = webp_times(path) if is_animated_webp(path) else probe(path, beat)
    return Length("video", found.duration if found.pts else _estimate(path, beat), found.damage)


def _begins_as_picture(path: Path) -> bool:
    with open(path, "rb") as file:
        head = file.read(12)
    return head.startswith(PICTURES) or (head[:4] == b"RIFF" and head[8:] == b"WEBP")


def _estimate(path: Path, beat: Callable[[], None]) -> float:
    """Return the seconds between the first and the last time of any packet, or how long so many frames last."""
    with reading_memory(path), open_video(path) as (container, stream):
        clock, tick, frame = clock_of(container, stream), time_base(stream), frame_ticks(container, stream)
        first = last = None
        count = 0
        try:
            for packet in container.demux(stream):
                beat()
                clock.join(packet)
                count += packet.size > 0
                for stamp in (packet.pts, packet.dts):
                    if stamp is not None and packet.size:
                        first = stamp if first is None else min(first, stamp)
                        last = stamp if last is None else max(last, stamp)
        except (IndexError, av.FFmpegError):
            pass  # probe has told the damage
        span = count * frame if first is None or last is None else last - first + frame
    return float(span * tick)
