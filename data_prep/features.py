"""Compute an encoder's features from stored pictures, in batches across videos, and write them shard by shard.

Batches are cut from all frames of the folder in order. The content of a batch, and so every bit of the result, depends
neither on interruptions nor on which shards are encoded.

F frames of a batch, B bytes of a frame, K tokens of a frame, V vision width.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data_prep.shard import FinishedShard, save_finished
from ma2mba.data.frames import decode_picture
from ma2mba.progress import Reporter
from ma2mba.shards.format import FRAMES_PER_ROW_GROUP, IndexRow
from ma2mba.shards.manifest import FeatureInfo, file_entry
from ma2mba.shards.reader import ShardReader
from ma2mba.shards.writer import PayloadFrame, PayloadHash, PayloadWriter

AHEAD = 3
"""Batches that are decoded before the encoder needs them, and batches of features that may wait for the disk."""
ROW_GROUP = FRAMES_PER_ROW_GROUP["features"]


def rows_by_shard(rows: list[IndexRow]) -> dict[int, list[IndexRow]]:
    """Return the index rows of each shard, by number. Rows without frames belong to the shard of the row before."""
    shards: dict[int, list[IndexRow]] = {}
    shard = 0
    for row in rows:
        shard = int(row.file.rsplit("-", 1)[1].split(".")[0]) if row.file else shard
        shards.setdefault(shard, []).append(row)
    return shards


@dataclass(frozen=True)
class _Piece:
    """The frames [start, stop) of a sample that belong to one batch."""

    shard: int
    row: IndexRow
    start: int
    stop: int


def encode_shards(
    reader: ShardReader,
    encoder: nn.Module,
    info: FeatureInfo,
    out: Path,
    missing: set[int],
    *,
    batch: int,
    threads: int,
) -> None:
    """Encode the shards in `missing` (numbers) and write each when its last frame is encoded.

    `threads` threads read and decode pictures, the calling thread feeds the encoder, and one more thread writes.
    """
    batches = [
        pieces
        for pieces in plan_batches(rows_by_shard(reader.rows), batch)
        if any(piece.shard in missing for piece in pieces)
    ]
    writer = _Writer(reader, info, out, missing)
    total = sum(p.stop - p.start for pieces in batches for p in pieces)
    with (
        Reporter(f"encoding {out.name}", total) as reporter,
        ThreadPoolExecutor(threads) as pool,
        ThreadPoolExecutor(1) as disk,
    ):
        writing: deque[Future[None]] = deque()
        for pieces, features_FKV in _encode(encoder, _read_ahead(pool, reader, batches)):
            writing.append(disk.submit(writer.take, pieces, features_FKV))
            if len(writing) > AHEAD:
                writing.popleft().result()
            reporter.advance(len(features_FKV), "frames")
        for left in writing:
            left.result()
    writer.finish()


def plan_batches(shards: dict[int, list[IndexRow]], batch: int) -> Iterator[list[_Piece]]:
    """Yield the pieces of each batch: all frames of the folder in order, `batch` at a time (the last has fewer)."""
    pieces: list[_Piece] = []
    room = batch
    for shard in sorted(shards):
        for row in shards[shard]:
            start = 0
            while start < row.frames:
                stop = min(row.frames, start + room)
                pieces.append(_Piece(shard, row, start, stop))
                start, room = stop, room - (stop - start)
                if not room:
                    yield pieces
                    pieces, room = [], batch
    if pieces:
        yield pieces


def _read_ahead(
    pool: ThreadPoolExecutor, reader: ShardReader, batches: list[list[_Piece]]
) -> Iterator[tuple[list[_Piece], Tensor]]:
    """Yield each batch with its pictures, uint8 (F, 3, H, W); threads of `pool` decode AHEAD batches in advance."""
    coming, image_size = iter(batches), reader.manifest.image_size
    ready: deque[tuple[list[_Piece], list[Future[np.ndarray]]]] = deque()

    def begin() -> None:
        if pieces := next(coming, None):
            jpegs = [
                (jpeg, f"{reader.folder}: frame {p.start + n} of sample {p.row.sample_id}")
                for p in pieces
                for n, jpeg in enumerate(reader.frames(p.row, p.start, p.stop))
            ]
            size = max(1, -(-len(jpegs) // pool._max_workers))
            slices = [jpegs[i : i + size] for i in range(0, len(jpegs), size)]
            ready.append((pieces, [pool.submit(_decode, some, image_size) for some in slices]))

    for _ in range(AHEAD):
        begin()
    while ready:
        pieces, decoded = ready.popleft()
        begin()
        yield pieces, torch.from_numpy(np.concatenate([future.result() for future in decoded])).permute(0, 3, 1, 2)


def _decode(jpegs: list[tuple[bytes, str]], image_size: int) -> np.ndarray:
    return np.stack([decode_picture(jpeg, image_size, name) for jpeg, name in jpegs])


@torch.inference_mode()
def _encode(encoder: nn.Module, coming: Iterator[tuple[list[_Piece], Tensor]]) -> Iterator[tuple[list[_Piece], Tensor]]:
    """Yield each batch with its features, bf16 (F, K, V) in host memory.

    On a GPU, the next batch is submitted before the features of the last one are waited for.
    """
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
            yield _wait_for_copy(before)
        before = pieces, features_FKV, after
    if before:
        yield _wait_for_copy(before)


def _wait_for_copy(encoded: tuple[list[_Piece], Tensor, Any]) -> tuple[list[_Piece], Tensor]:
    """Wait until a GPU has copied the features to host memory."""
    pieces, features_FKV, event = encoded
    if event is not None:
        event.synchronize()
    return pieces, features_FKV


class _Writer:
    """Writes features into the payload files of their shards, in order. A shard is finished after its last row."""

    def __init__(self, reader: ShardReader, info: FeatureInfo, out: Path, missing: set[int]):
        self.reader, self.info, self.out, self.missing = reader, info, out, missing
        self.rows_of = rows_by_shard(reader.rows)
        self.shard: int | None = None
        self.left: deque[IndexRow] = deque()
        self.file: PayloadWriter | None = None
        self.rows: list[IndexRow] = []
        self._begin_row()

    def take(self, pieces: list[_Piece], features_FKV: Tensor) -> None:
        """Write the frames of a batch that belong to missing shards."""
        bits_FB = features_FKV.view(torch.int16).reshape(len(features_FKV), -1).numpy()
        at = 0
        for piece in pieces:
            if piece.shard in self.missing:
                if self.shard != piece.shard:
                    self._begin_shard(piece.shard)
                self._add(piece, bits_FB[at : at + piece.stop - piece.start])
            at += piece.stop - piece.start

    def finish(self) -> None:
        """Write the missing shards that have no frames (samples of text alone)."""
        for shard in sorted(self.missing):
            self._begin_shard(shard)

    def _begin_shard(self, shard: int) -> None:
        self.shard, self.left, self.rows = shard, deque(self.rows_of[shard]), []
        self.file = PayloadWriter(self.out, shard, "features", self.info.frame_bytes)
        self._copy_text_rows()

    def _begin_row(self) -> None:
        self.pending: list[PayloadFrame] = []
        self.digest, self.first = PayloadHash(), -1

    def _add(self, piece: _Piece, bits_FB: np.ndarray) -> None:
        """Write the full row groups of a row's frames, and keep the rest until its next piece or its end."""
        assert self.file is not None
        row, pts = piece.row, self.reader.shown_since(piece.row, piece.start, piece.stop)
        for t, since, frame_B in zip(row.timestamps[piece.start : piece.stop], pts, bits_FB, strict=True):
            data = frame_B.tobytes()
            self.digest.add(data)
            self.pending.append(PayloadFrame(float(t), float(since), data))
        whole = len(self.pending) if piece.stop == row.frames else len(self.pending) // ROW_GROUP * ROW_GROUP
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
            self._copy_text_rows()

    def _copy_text_rows(self) -> None:
        """Copy the rows without frames that come next; finish the shard after its last row."""
        while self.left and not self.left[0].frames:
            self.rows.append(self.left.popleft())
        if not self.left:
            self._end_shard()

    def _end_shard(self) -> None:
        assert self.file is not None
        assert self.shard is not None
        self.file.__exit__(None, None, None)
        payload = file_entry(self.out, self.file.name) if any(row.frames for row in self.rows) else None
        save_finished(self.out, self.shard, self.rows, FinishedShard(payload, [], 0))
        self.missing.discard(self.shard)
