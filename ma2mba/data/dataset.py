"""Shard folders as one list of samples, by index. Frames of long samples are read on request."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
import xxhash
from torch import Tensor

from ma2mba.data.batch import Sample, target_count
from ma2mba.data.frames import decode_picture, features_problem
from ma2mba.data.sampler import WeightedSamples
from ma2mba.errors import UserError
from ma2mba.exclude import check_known
from ma2mba.files import sha256_file
from ma2mba.shards.manifest import FeatureInfo
from ma2mba.shards.reader import IndexRow, ShardReader

EAGER_FRAMES = 128
"""Samples with more frames are not read into memory. Their frames are read range by range."""
FRAMES_PER_TASK = 8
"""How many frames a thread decodes at a time when several threads decode a range."""


class Dataset:
    """The samples of one or more shard folders, in the order of their indexes. `dataset[i]` reads a sample.

    The sampler plans batches without reading samples, from these values of the index (N samples, int64):

    length_N   text and visual tokens
    targets_N  tokens that the loss is taken over
    frames_N   frames
    mixture    the samples of each data set of each folder, with the folder's entry in `weights` (default: 1) times the
               data set's weight

    `rows` are the samples of each folder, without those whose ids are in `exclude`. Raise UserError if an excluded id
    is unknown, a folder is damaged, has another image size or tokenizer than the model, or has a sample without
    targets; and if some folders hold pictures and others features, or features of different encoders.
    """

    def __init__(
        self,
        folders: Sequence[Path | str],
        image_size: int,
        tokens_per_frame: int,
        *,
        weights: Sequence[float] | None = None,
        exclude: frozenset[str] = frozenset(),
        eager_frames: int = EAGER_FRAMES,
    ):
        self.readers = [ShardReader(Path(folder)) for folder in folders]
        self.folders = [Path(folder) for folder in folders]
        self.image_size, self.tokens_per_frame, self.eager_frames = image_size, tokens_per_frame, eager_frames
        self.weights = list(weights or [1.0] * len(self.folders))
        self._check_manifests()
        self.rows = [[row for row in reader.rows if row.sample_id not in exclude] for reader in self.readers]
        known = (row.sample_id for reader in self.readers for row in reader.rows) if exclude else ()
        check_known(exclude, known, ", ".join(map(str, self.folders)))
        self.samples: list[tuple[ShardReader, IndexRow]] = [
            (reader, row) for reader, rows in zip(self.readers, self.rows, strict=True) for row in rows
        ]
        rows = [row for _, row in self.samples]
        self.frames_N = np.array([row.frames for row in rows], np.int64)
        self.length_N = np.array([len(row.token_ids) for row in rows], np.int64) + self.frames_N * tokens_per_frame
        self.targets_N = np.array([target_count(row.supervised, row.frame_positions) for row in rows], np.int64)
        self._check_samples()

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def largest_token(self) -> int:
        """Return the largest token id of all samples."""
        return max(reader.largest_token for reader in self.readers)

    @property
    def tokenizer_path(self) -> Path:
        return Path(self.readers[0].tokenizer_path)

    @property
    def features(self) -> FeatureInfo | None:
        """Return what the stored features are; None if the folders hold pictures."""
        return self.readers[0].manifest.features

    @cached_property
    def mixture(self) -> list[WeightedSamples]:
        """Return the samples of each data set of each folder, with their weight."""
        mixture: list[WeightedSamples] = []
        first = 0
        for reader, rows, folder_weight in zip(self.readers, self.rows, self.weights, strict=True):
            names = np.array([row.dataset for row in rows], np.str_)
            sources = reader.manifest.sources
            pairs = [(first + np.flatnonzero(names == s.name), folder_weight * s.weight) for s in sources]
            mixture += [WeightedSamples(samples, weight) for samples, weight in pairs if len(samples)]
            first += len(rows)
        return mixture

    @cached_property
    def fingerprint(self) -> str:
        """Return a hash of the samples, their order and weights. Equal fingerprints give equal batches."""
        digest = xxhash.xxh3_128()
        for (_, row), length in zip(self.samples, self.length_N, strict=True):
            digest.update(f"{row.sample_id}\0{length}\n".encode())
        if any(one.weight != 1 for one in self.mixture):
            digest.update(repr([(one.weight, len(one.samples)) for one in self.mixture]).encode())
        return digest.hexdigest()

    @cached_property
    def contents(self) -> list[str]:
        """Return for each folder a hash of what its samples teach: tokens, labels, places of frames, and frames.

        Paths, file names and the build do not count. The sum of the hashes, modulo 2^128, does not depend on how the
        samples are distributed over folders.
        """
        return [f"{sum(map(_content, rows)) % (1 << 128):032x}" for rows in self.rows]

    def __getitem__(self, index: int) -> Sample:
        """Read a sample. If it has more than `eager_frames` frames, they are read on request.

        Raise ShardDamaged if its bytes differ from the bytes that were written.
        """
        reader, row = self.samples[index]
        eager = row.frames <= self.eager_frames
        source = StoredFrames(reader, row, self.image_size, threads=not eager)
        frames = source[0 : row.frames] if eager else source
        return Sample(row.sample_id, row.token_ids, row.supervised, row.frame_positions, frames)

    def _check_manifests(self) -> None:
        first = self.readers[0].manifest
        for folder, reader in zip(self.folders, self.readers, strict=True):
            manifest = reader.manifest
            if manifest.image_size != self.image_size:
                raise UserError(
                    f"{folder}: frames are {manifest.image_size} pixels wide, but the model needs {self.image_size}. "
                    f"Build the shards with image_size {self.image_size}"
                )
            if manifest.tokenizer_sha256 != first.tokenizer_sha256:
                raise UserError(
                    f"{folder}: built with another tokenizer than {self.folders[0]}. Build one of them again"
                )
            if sha256_file(reader.tokenizer_path) != manifest.tokenizer_sha256:
                raise UserError(
                    f"{reader.tokenizer_path}: not the tokenizer that the manifest names. Build the shards again"
                )
            if manifest.features != first.features:
                raise UserError(
                    f"{folder}: holds {_kind(manifest.features)}, but {self.folders[0]} holds {_kind(first.features)}. "
                    "Train on folders of one kind (`ma2mba data encode` turns pictures into features)"
                )
        if first.features and first.features.tokens != self.tokens_per_frame:
            raise UserError(
                f"{self.folders[0]}: holds features of {first.features.tokens} tokens per frame, but the model has "
                f"{self.tokens_per_frame}. Encode the frames with the model's own vision encoder"
            )

    def _check_samples(self) -> None:
        if not self.samples:
            raise UserError(
                f"{', '.join(map(str, self.folders))}: no samples. The file rejects.jsonl there lists the reasons"
            )
        without = np.flatnonzero(self.targets_N == 0)
        if len(without):
            reader, row = self.samples[without[0]]
            raise UserError(
                f"{reader.folder}: sample {row.sample_id} has no answer to learn from ({len(without)} such samples in "
                "all folders). List their ids under exclude, or remove them from the annotations and build again"
            )


class StoredFrames:
    """The frames of one sample in its shard folder. `frames[a:b]` reads and decodes only frames [a, b).

    Returns uint8 (b - a, 3, H, W) for pictures, bf16 (b - a, tokens, width) for features. With `threads`, several
    threads decode a range.
    """

    def __init__(self, reader: ShardReader, row: IndexRow, image_size: int, *, threads: bool = False):
        self.reader, self.row, self.image_size = reader, row, image_size
        self._map: Callable[..., Iterable[None]] = _decoders().map if threads else map

    def __len__(self) -> int:
        return self.row.frames

    def __getitem__(self, at: slice, /) -> Tensor:
        start, stop, _ = at.indices(len(self))
        stored, features = self.reader.frames(self.row, start, stop), self.reader.manifest.features
        if features:
            joined = bytearray(b"".join(stored))
            if problem := features_problem(joined):
                where = f"frames {start} to {stop - 1} of sample {self.row.sample_id}"
                raise UserError(f"{self.reader.folder}: one of {where} {problem}. Encode the shards again")
            bits = torch.frombuffer(joined, dtype=torch.bfloat16) if stored else torch.empty(0)
            return bits.to(torch.bfloat16).view(len(stored), features.tokens, features.width)
        frames_NHWC = np.empty((len(stored), self.image_size, self.image_size, 3), np.uint8)

        def fill(first: int) -> None:
            for n in range(first, min(first + FRAMES_PER_TASK, len(stored))):
                frames_NHWC[n] = self._decode(stored[n], start + n)

        for _ in self._map(fill, range(0, len(stored), FRAMES_PER_TASK)):
            pass
        return torch.from_numpy(frames_NHWC).permute(0, 3, 1, 2)

    def _decode(self, jpeg: bytes, n: int) -> np.ndarray:
        return decode_picture(jpeg, self.image_size, f"{self.reader.folder}: frame {n} of sample {self.row.sample_id}")


@cache
def _decoders() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="ma2mba-decode")


def _content(row: IndexRow) -> int:
    """Return a hash of what a sample teaches."""
    digest = xxhash.xxh3_128(f"{row.sample_id}\0{row.payload_xxh3}\0{len(row.token_ids)}\0".encode())
    for values, dtype in ((row.token_ids, "<i4"), (row.supervised, "?"), (row.frame_positions, "<i4")):
        digest.update(np.ascontiguousarray(values, dtype).tobytes())
    return digest.intdigest()


def _kind(features: FeatureInfo | None) -> str:
    if features is None:
        return "pictures"
    return f"features of encoder {features.encoder[:8]} ({features.tokens} x {features.width})"
