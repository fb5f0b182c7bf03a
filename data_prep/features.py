"""Pictures -> an encoder's features, batched across videos, written part by part.

Frames are numbered through the whole folder and batched in that order, so that what a batch holds, and with it every
bit of the result, depends neither on interruptions nor on which parts are encoded.
F frames of a batch, B bytes of a frame, K tokens of a frame, V vision width.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from torch import Tensor, nn

from data_prep.parts import Fragment, save_fragment
from ma2mba.progress import Reporter
from ma2mba.shards.format import FRAMES_PER_ROW_GROUP, IndexRow
from ma2mba.shards.manifest import FeatureInfo, file_entry
from ma2mba.shards.reader import ShardReader
from ma2mba.shards.writer import PartWriter, PayloadFrame, PayloadHash

AHEAD = 3
"""Batches that wait for the encoder, and batches of results that wait for the disk."""
GROUP = FRAMES_PER_ROW_GROUP["features"]


def split_parts(rows: list[IndexRow]) -> dict[int, list[IndexRow]]:
    """The rows of each payload file, by its number; text alone goes with the file before it."""
    parts: dict[int, list[IndexRow]] = {}
    part = 0
    for row in rows:
        part = int(row.file.rsplit("-", 1)[1].split(".")[0]) if row.file else part
        parts.setdefault(part, []).append(row)
    return parts


@dataclass(frozen=True)
class _Piece:
    """Frames [start, stop) of a sample: a stretch of one batch."""

    part: int
    row: IndexRow
    start: int
    stop: int


def encode_parts(
    reader: ShardReader,
    encoder: nn.Module,
    info: FeatureInfo,
    out: Path,
    missing: set[int],
    *,
    batch: int,
    threads: int,
) -> None:
    """Encode the missing parts, each written when its last frame is there.

    Threads read and decode pictures, this one feeds the encoder, another writes.
    """
    batches = [
        pieces for pieces in plan_batches(split_parts(reader.rows), batch) if any(p.part in missing for p in pieces)
    ]
    writer = _Writer(reader, info, out, missing)
    total = sum(p.stop - p.start for pieces in batches for p in pieces)
    with (
        Reporter(f"encoding {out.name}", total) as reporter,
        ThreadPoolExecutor(threads) as pool,
        ThreadPoolExecutor(1) as disk,
    ):
        writing: deque[Future[None]] = deque()
        for pieces, features_FKV in _through(encoder, _ahead(pool, reader, batches)):
            writing.append(disk.submit(writer.take, pieces, features_FKV))
            if len(writing) > AHEAD:
                writing.popleft().result()
            reporter.advance(len(features_FKV), "frames")
        for left in writing:
            left.result()
    writer.finish()


def plan_batches(parts: dict[int, list[IndexRow]], batch: int) -> Iterator[list[_Piece]]:
    """All frames of the folder in order, `batch` at a time; only the last batch is smaller."""
    pieces: list[_Piece] = []
    room = batch
    for part in sorted(parts):
        for row in parts[part]:
            start = 0
            while start < row.frames:
                stop = min(row.frames, start + room)
                pieces.append(_Piece(part, row, start, stop))
                start, room = stop, room - (stop - start)
                if not room:
                    yield pieces
                    pieces, room = [], batch
    if pieces:
        yield pieces


def _ahead(
    pool: ThreadPoolExecutor, reader: ShardReader, batches: list[list[_Piece]]
) -> Iterator[tuple[list[_Piece], Tensor]]:
    """The pictures of each batch, read and decoded by several threads before they are asked for."""
    coming = iter(batches)
    ready: deque[tuple[list[_Piece], list[Future[np.ndarray]]]] = deque()

    def begin() -> None:
        if pieces := next(coming, None):
            jpegs = [jpeg for p in pieces for jpeg in reader.frames(p.row, p.start, p.stop)]
            share = max(1, -(-len(jpegs) // pool._max_workers))
            shares = [jpegs[i : i + share] for i in range(0, len(jpegs), share)]
            ready.append((pieces, [pool.submit(_decode, some) for some in shares]))

    for _ in range(AHEAD):
        begin()
    while ready:
        pieces, decoded = ready.popleft()
        begin()
        yield pieces, torch.from_numpy(np.concatenate([future.result() for future in decoded])).permute(0, 3, 1, 2)


def _decode(jpegs: list[bytes]) -> np.ndarray:
    return np.stack([simplejpeg.decode_jpeg(jpeg, colorspace="RGB") for jpeg in jpegs])


@torch.inference_mode()
def _through(
    encoder: nn.Module, coming: Iterator[tuple[list[_Piece], Tensor]]
) -> Iterator[tuple[list[_Piece], Tensor]]:
    """Features of each batch, bf16 in host memory; a GPU has the next batch before the last one's are waited for."""
    device = next(encoder.parameters()).device
    before: tuple[list[_Piece], Tensor, Any] | None = None
    for pieces, frames_FHWC in coming:
        on_gpu = device.type == "cuda"
        features_FKV = encoder((frames_FHWC.pin_memory() if on_gpu else frames_FHWC).to(device, non_blocking=True))
        after = None
        if on_gpu:
            held = torch.empty(features_FKV.shape, dtype=torch.bfloat16, pin_memory=True)
            features_FKV = held.copy_(features_FKV, non_blocking=True)
            after = torch.cuda.Event()
            after.record()
        if before:
            yield _settled(before)
        before = pieces, features_FKV, after
    if before:
        yield _settled(before)


def _settled(made: tuple[list[_Piece], Tensor, Any]) -> tuple[list[_Piece], Tensor]:
    pieces, features_FKV, event = made
    if event is not None:
        event.synchronize()
    return pieces, features_FKV


class _Writer:
    """Puts features into their parts, in order; a part is finished when its last row is."""

    def __init__(self, reader: ShardReader, info: FeatureInfo, out: Path, missing: set[int]):
        self.reader, self.info, self.out, self.missing = reader, info, out, missing
        self.parts = split_parts(reader.rows)
        self.part: int | None = None
        self.left: deque[IndexRow] = deque()
        self.file: PartWriter | None = None
        self.rows: list[IndexRow] = []
        self._begin_row()

    def take(self, pieces: list[_Piece], features_FKV: Tensor) -> None:
        """Write the frames of a batch that belong to missing parts."""
        bits_FB = features_FKV.view(torch.int16).reshape(len(features_FKV), -1).numpy()
        at = 0
        for piece in pieces:
            if piece.part in self.missing:
                if self.part != piece.part:
                    self._begin_part(piece.part)
                self._add(piece, bits_FB[at : at + piece.stop - piece.start])
            at += piece.stop - piece.start

    def finish(self) -> None:
        """Parts without a frame (text alone)."""
        for part in sorted(self.missing):
            self._begin_part(part)

    def _begin_part(self, part: int) -> None:
        self.part, self.left, self.rows = part, deque(self.parts[part]), []
        self.file = PartWriter(self.out, part, "features", self.info.frame_bytes)
        self._skip_text()

    def _begin_row(self) -> None:
        self.pending: list[PayloadFrame] = []
        self.digest, self.first, self.written = PayloadHash(), -1, 0

    def _add(self, piece: _Piece, bits_FB: np.ndarray) -> None:
        assert self.file is not None
        row, pts = piece.row, self.reader.shown_since(piece.row, piece.start, piece.stop)
        for t, since, frame_B in zip(row.timestamps[piece.start : piece.stop], pts, bits_FB, strict=True):
            data = frame_B.tobytes()
            self.digest.add(data)
            self.pending.append(PayloadFrame(float(t), float(since), data))
        whole = len(self.pending) if piece.stop == row.frames else len(self.pending) // GROUP * GROUP
        if whole:
            first = self.file.add(row.sample_id, self.pending[:whole])
            self.first = first if self.first < 0 else self.first
            self.pending = self.pending[whole:]
        if piece.stop == row.frames:
            self.left.popleft()
            self.rows.append(
                replace(row, file=self.file.name, first_row_group=self.first, payload_xxh3=self.digest.hexdigest())
            )
            self._begin_row()
            self._skip_text()

    def _skip_text(self) -> None:
        while self.left and not self.left[0].frames:
            self.rows.append(self.left.popleft())
        if not self.left:
            self._end_part()

    def _end_part(self) -> None:
        assert self.file is not None
        assert self.part is not None
        self.file.__exit__(None, None, None)
        payload = file_entry(self.out, self.file.name) if any(row.frames for row in self.rows) else None
        save_fragment(self.out, self.part, self.rows, Fragment(payload, [], 0))
        self.missing.discard(self.part)
