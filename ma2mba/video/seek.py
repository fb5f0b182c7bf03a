"""Decode stretches of a video: reach their first packets by seeking, with the frames of decoding from the start.

Every packet is compared with the packets that `probe` read, one after the other from an entry on, and every frame must
have a pts that the plan wants. So a decoder sees what it sees when it decodes the file from its start, but for packets
that the frames cannot refer to. At any doubt, `Doubt` is raised, and the file is decoded from its start.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from ma2mba.memory import held_bytes
from ma2mba.video.errors import reading_memory
from ma2mba.video.pyav import decoder_memory, display_matrix, open_video, raise_if_out_of_memory, time_base
from ma2mba.video.stretches import Stretch, Stretches
from ma2mba.video.view import View, view_of

T = TypeVar("T")
WORTH = 1000
"""Packets that seeking must save: a short video is decoded as a whole, which also finds damage between the frames."""
SEEK_COST = 100
"""Packets that can be decoded while a file is searched for another place."""
MARGINS = (0, 2, 20)
"""Seconds before an entry to which to seek, tried in turn: formats without an index find a time only roughly."""
ASTRAY = 20_000
"""Packets that are read in search of an entry at most."""


class Doubt(Exception):
    """What was found after seeking is not what `probe` has read."""


class Divided(Exception):
    """A video is to be decoded in pieces, as `Stretches.pieces` returns them."""

    def __init__(self, pieces: list[tuple[int, int, Stretch]]):
        super().__init__(pieces)
        self.pieces = pieces


@contextmanager
def open_at(path: Path, beat: Callable[[], None]) -> Iterator["Seeker"]:
    """Open a video to decode stretches of it."""
    with open_video(path) as (container, stream):
        yield Seeker(path, container, stream, view_of(path, container, stream), beat)


@dataclass
class Seeker:
    """An open video."""

    path: Path
    container: InputContainer
    stream: VideoStream
    view: View
    beat: Callable[[], None]

    def frames(self, stretch: Stretch) -> Iterator[tuple[np.ndarray, bytes]]:
        """Yield the picture (RGB, uint8 (H, W, 3)) and the display matrix of each wanted frame, in order.

        Raise Doubt if a packet or frame is not as planned.
        """
        wanted, due = stretch.wanted_W.tolist(), 0
        among, known, before = set(wanted), set(stretch.pts_P.tolist()), -math.inf
        for frame in self._decode(stretch, among):
            if frame.pts is None or frame.pts not in known or frame.pts <= before:
                raise Doubt
            before = frame.pts
            if frame.pts not in among:
                continue
            if frame.pts != wanted[due] or frame.is_corrupt:
                raise Doubt
            matrix = display_matrix(frame)
            yield self.view.picture(frame), b"" if matrix is None else matrix.tobytes()
            due += 1
            if due == len(wanted):
                return
        raise Doubt

    def _decode(self, stretch: Stretch, wanted: set[int]) -> Iterator[av.VideoFrame]:
        """Decode the packets of a stretch, in which frames that are neither wanted nor needed are skipped.

        The entry is never skipped: libdav1d takes what is said at its first packet for the whole stream.
        """
        kept = wanted | {int(stretch.pts_P[0])}
        room, held = decoder_memory(self.stream), held_bytes()
        packets = self._packets(stretch)
        while True:
            try:
                with reading_memory(self.path, room, held):
                    packet = next(packets, None)
                    skipped = packet is not None and packet.pts not in kept
                    self.stream.codec_context.skip_frame = "NONREF" if skipped else "DEFAULT"
                    frames = packet.decode() if packet else self.stream.decode(None)
            except (av.FFmpegError, EOFError, IndexError) as error:
                raise_if_out_of_memory(error)
                raise Doubt from error
            for frame in frames:
                yield frame
                if frame.pts in wanted:
                    held = held_bytes()
            if not packet:
                return

    def _packets(self, stretch: Stretch) -> Iterator[Packet]:
        """Yield the packets of a stretch. Raise Doubt unless the file gives just these."""
        following = self._reach(stretch)
        for pts, size in zip(stretch.pts_P.tolist(), stretch.sizes_P.tolist(), strict=True):
            packet = next(following, None)
            if packet is None or packet.pts != pts or packet.size != size:
                raise Doubt
            yield packet

    def _reach(self, stretch: Stretch) -> Iterator[Packet]:
        """Seek, and yield the packets from the stretch's first packet on."""
        entry, later = int(stretch.pts_P[0]), set(stretch.pts_P[1:].tolist())
        for margin in MARGINS:
            back = int(Fraction(margin) / time_base(self.stream))
            self.container.seek(entry - back, stream=self.stream)
            packets = self._demux()
            for _, packet in zip(range(ASTRAY), packets, strict=False):
                if packet.pts == entry:
                    yield packet
                    yield from packets
                    return
                if packet.pts in later:
                    break
        raise Doubt

    def _demux(self) -> Iterator[Packet]:
        for packet in self.container.demux(self.stream):
            self.beat()
            if packet.size:
                yield packet


def decode_sparse(
    path: Path,
    plan: Stretches,
    use: Callable[[np.ndarray], T],
    beat: Callable[[], None],
    begin: Callable[[], None],
) -> tuple[list[T], str] | None:
    """Return what `use` returned for all wanted frames, and what the view ignores; None if seeking is not worth it.

    `begin` is called before the first frame. Raise Doubt if the file must be decoded from its start.
    """
    groups = plan.groups(SEEK_COST) if plan.possible else []
    if not groups or plan.saved(groups) < WORTH + SEEK_COST * len(groups):
        return None
    begin()
    with open_at(path, beat) as video:
        used = [use(picture) for picture in _compared(video, plan, groups)]
        return used, video.view.ignored


def _compared(video: Seeker, plan: Stretches, groups: Sequence[tuple[int, int]]) -> Iterator[np.ndarray]:
    """Yield all pictures. Raise Doubt at one that would differ when the file is decoded from its start.

    The first picture that is reached by seeking is decoded from one entry earlier too, and compared. H.264 may state
    how to turn the pictures once, at the start of the file.
    """
    check, turned = None, set()
    for first, stop in groups:
        stretch, earlier = plan.stretch(first, stop), plan.stretch(first, first + 1, earlier=1)
        due = check is None and earlier.pts_P[0] != stretch.pts_P[0]
        if due:
            ((check, _),) = video.frames(earlier)
        for picture, matrix in video.frames(stretch):
            turned.add(matrix)
            if len(turned) > 1 or (due and check is not None and not np.array_equal(check, picture)):
                raise Doubt
            due = False
            yield picture
