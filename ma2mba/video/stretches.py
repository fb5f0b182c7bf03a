"""Plan which packets of a video must be decoded for some of its frames, in stretches that begin at entries.

P packets in the order of decoding, W wanted frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ma2mba.video.entries import ENTRY, PARAMETERS

KEY = 1
"""Flag of a packet: the container calls its frame a key frame."""
PIECE, LARGEST = 24, 64
"""Frames that one process decodes as a piece of a video, usually and at most. They are held until their turn."""
LONG = 2000
"""Packets of a video that several processes decode faster than one."""
AFTER = 2
"""Packets that are decoded after the last wanted one: the second field of a frame may have a packet of its own."""


@dataclass(frozen=True)
class Packets:
    """All packets of a stream whose times can be trusted: pts in ticks, sizes in bytes, flags of probe and entries."""

    pts_P: np.ndarray
    sizes_P: np.ndarray
    flags_P: np.ndarray

    def entries(self) -> np.ndarray:
        """Return the numbers of the packets from which decoding can start.

        If some key packets hold parameter sets, one without them may need those of another packet.
        """
        wanted = ENTRY | (PARAMETERS if (self.flags_P & PARAMETERS).any() else 0)
        entries = np.flatnonzero((self.flags_P & KEY > 0) & (self.flags_P & wanted == wanted))
        return entries if (np.diff(self.pts_P[entries]) > 0).all() else entries[:0]


@dataclass(frozen=True)
class Stretch:
    """Packets that can be decoded by themselves, from an entry on: their pts and sizes. `wanted_W`: pts of frames."""

    pts_P: np.ndarray
    sizes_P: np.ndarray
    wanted_W: np.ndarray


class Stretches:
    """Cuts the packets of a video at entries."""

    def __init__(self, packets: Packets, wanted: Sequence[int]):
        """`wanted`: increasing pts of frames."""
        self._packets = packets
        self._entries = packets.entries()
        self._wanted_W = np.array(wanted, np.int64)
        order = np.argsort(packets.pts_P)
        self._at_W = order[np.searchsorted(packets.pts_P[order], self._wanted_W)]
        entry_pts = packets.pts_P[self._entries]
        self._entry_W = np.searchsorted(entry_pts, self._wanted_W, "right") - 1

    @property
    def possible(self) -> bool:
        """Return True if every wanted frame follows an entry, in the order of decoding and of showing."""
        if not len(self._wanted_W) or self._entry_W[0] < 0:
            return False
        return bool((self._entries[self._entry_W] <= self._at_W).all())

    def groups(self, apart: int) -> list[tuple[int, int]]:
        """Return (first, stop) of wanted frames that one run of the decoder reaches best.

        A new run begins where it saves more than `apart` packets.
        """
        groups, first, end = [], 0, -1
        for number in range(len(self._wanted_W)):
            if number > first and self._entries[self._entry_W[number]] - end > apart:
                groups.append((first, number))
                first, end = number, -1
            end = max(end, int(self._at_W[number]))
        return [*groups, (first, len(self._wanted_W))]

    def stretch(self, first: int, stop: int, earlier: int = 0) -> Stretch:
        """Return the packets of the wanted frames first, ... before stop; start `earlier` entries earlier."""
        entry = int(self._entries[max(0, self._entry_W[first] - earlier)])
        end = int(self._at_W[first:stop].max()) + 1 + AFTER
        return Stretch(self._packets.pts_P[entry:end], self._packets.sizes_P[entry:end], self._wanted_W[first:stop])

    def pieces(self) -> list[tuple[int, int, "Stretch"]]:
        """Return (first, stop) of wanted frames for pieces of about PIECE frames that begin at entries, and stretches.

        The stretch of a piece also has the first frame of the next one. Return an empty list if the video is too short,
        or if a piece would have more than LARGEST frames.
        """
        if not self.possible or self._at_W[-1] - self._entries[self._entry_W[0]] < LONG:
            return []
        cuts = [0]
        for number in np.flatnonzero(np.diff(self._entry_W)) + 1:
            if number - cuts[-1] >= PIECE:
                cuts.append(int(number))
        frames = len(self._wanted_W)
        pieces = list(pairwise([*cuts, frames]))
        if len(pieces) < 2 or max(stop - first for first, stop in pieces) > LARGEST:
            return []
        return [(first, stop, self.stretch(first, min(stop + 1, frames))) for first, stop in pieces]

    def saved(self, groups: Sequence[tuple[int, int]]) -> int:
        """Return how many packets fewer the stretches of these groups have than one from the start of the file."""
        costs = [self._at_W[first:stop].max() - self._entries[self._entry_W[first]] for first, stop in groups]
        return int(self._at_W.max()) - int(sum(costs))
