"""Shard folders as one numbered list of samples, whose frames are read when they are asked for."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import simplejpeg
import torch
import xxhash
from torch import Tensor

from ma2mba.data.batch import Sample, target_count
from ma2mba.data.sampler import Group
from ma2mba.errors import UserError
from ma2mba.shards.manifest import FeatureInfo
from ma2mba.shards.reader import IndexRow, ShardReader

EAGER_FRAMES = 128
"""Longer samples are not read into memory: their frames are read range by range."""
DECODED_TOGETHER = 8
"""Frames that one thread decodes at a time, where several decode a range."""


class Dataset:
    """The samples of one or more shard folders, in the order of their indexes.

    Batches are planned from numbers that the index alone gives, one entry a sample, int64: `length_N` (tokens, text and
    visual), `targets_N` (tokens that the loss is taken over) and `frames_N`; and from `groups`: samples that are drawn
    as often as their folder's entry of `weights` (by default 1) times their data set's weight says.
    Raises UserError when a folder is damaged, was made for another image size or tokenizer, or teaches nothing, and
    when some folders hold pictures and others features, or features of another encoder.
    """

    def __init__(
        self,
        folders: Sequence[Path | str],
        image_size: int,
        tokens_per_frame: int,
        *,
        weights: Sequence[float] | None = None,
        eager_frames: int = EAGER_FRAMES,
    ):
        self.readers = [ShardReader(Path(folder)) for folder in folders]
        self.folders = [Path(folder) for folder in folders]
        self.image_size, self.tokens_per_frame, self.eager_frames = image_size, tokens_per_frame, eager_frames
        self.weights = list(weights or [1.0] * len(self.folders))
        self._check_manifests()
        self.samples: list[tuple[ShardReader, IndexRow]] = [(r, row) for r in self.readers for row in r.rows]
        rows = [row for _, row in self.samples]
        self.frames_N = np.array([row.frames for row in rows], np.int64)
        self.length_N = np.array([len(row.token_ids) for row in rows], np.int64) + self.frames_N * tokens_per_frame
        self.targets_N = np.array([target_count(row.supervised, row.frame_positions) for row in rows], np.int64)
        self._check_samples()

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def tokenizer_path(self) -> Path:
        return Path(self.readers[0].tokenizer_path)

    @property
    def features(self) -> FeatureInfo | None:
        """What frames are when they are an encoder's features; None for pictures."""
        return self.readers[0].manifest.features

    @cached_property
    def groups(self) -> list[Group]:
        """What is drawn alike: the data sets of each folder."""
        groups: list[Group] = []
        first = 0
        for reader, weight in zip(self.readers, self.weights, strict=True):
            names = np.array([row.dataset for row in reader.rows])
            places = [(first + np.flatnonzero(names == s.name), weight * s.weight) for s in reader.manifest.sources]
            groups += [Group(samples, times) for samples, times in places if len(samples)]
            first += len(reader.rows)
        return groups

    @cached_property
    def fingerprint(self) -> str:
        """Names the samples, their order and weights: two datasets with the same one give the same batches."""
        digest = xxhash.xxh3_128()
        for (_, row), length in zip(self.samples, self.length_N, strict=True):
            digest.update(f"{row.sample_id}\0{length}\n".encode())
        if any(group.weight != 1 for group in self.groups):
            digest.update(repr([(group.weight, len(group.samples)) for group in self.groups]).encode())
        return digest.hexdigest()

    def __getitem__(self, index: int) -> Sample:
        """One sample; up to `eager_frames` frames are in memory, those of a longer one are read when asked for.

        Raises UserError (ShardDamaged) when its bytes are not what was written.
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
                    f"{folder}: frames are {manifest.image_size} pixels wide but the model sees {self.image_size}; "
                    f"preprocess the videos with image_size {self.image_size}"
                )
            if manifest.tokenizer_sha256 != first.tokenizer_sha256:
                raise UserError(
                    f"{folder}: written with another tokenizer than {self.folders[0]}; preprocess one of them again"
                )
            if manifest.features != first.features:
                raise UserError(
                    f"{folder}: holds {_kind(manifest.features)} but {self.folders[0]} holds {_kind(first.features)}; "
                    "train on folders of one kind (`python -m data_prep encode` makes features)"
                )
        if first.features and first.features.tokens != self.tokens_per_frame:
            raise UserError(
                f"{self.folders[0]}: features of {first.features.tokens} tokens a frame, but the model has "
                f"{self.tokens_per_frame}; encode the frames with the model's own encoder"
            )

    def _check_samples(self) -> None:
        if not self.samples:
            raise UserError(f"{', '.join(map(str, self.folders))}: no samples; see rejects.jsonl there for the reasons")
        silent = np.flatnonzero(self.targets_N == 0)
        if len(silent):
            name = self.samples[silent[0]][1].sample_id
            raise UserError(
                f"{len(silent)} samples have nothing for the model to say (the first is {name}); "
                "remove them and preprocess again"
            )


class StoredFrames:
    """The frames of one sample in its shard: `frames[a:b]` reads and decodes just these.

    uint8 (b - a, 3, H, W) of pictures, bf16 (b - a, tokens, width) of features. `threads`: several decode a range.
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
            bits = torch.frombuffer(bytearray(b"".join(stored)), dtype=torch.bfloat16) if stored else torch.empty(0)
            return bits.to(torch.bfloat16).view(len(stored), features.tokens, features.width)
        frames_NHWC = np.empty((len(stored), self.image_size, self.image_size, 3), np.uint8)

        def fill(first: int) -> None:
            for n in range(first, min(first + DECODED_TOGETHER, len(stored))):
                frames_NHWC[n] = self._decode(stored[n], start + n)

        for _ in self._map(fill, range(0, len(stored), DECODED_TOGETHER)):
            pass
        return torch.from_numpy(frames_NHWC).permute(0, 3, 1, 2)

    def _decode(self, jpeg: bytes, n: int) -> np.ndarray:
        try:
            frame_HWC = simplejpeg.decode_jpeg(jpeg, colorspace="RGB")
        except ValueError as error:
            raise UserError(
                f"frame {n} of sample {self.row.sample_id} is not a JPEG image ({error}); preprocess this sample again"
            ) from error
        if frame_HWC.shape[:2] != (self.image_size, self.image_size):
            height, width = frame_HWC.shape[:2]
            raise UserError(
                f"frame {n} of sample {self.row.sample_id} is {width}x{height} but its manifest says "
                f"{self.image_size}x{self.image_size}; preprocess this sample again"
            )
        return frame_HWC


@cache
def _decoders() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="ma2mba-decode")


def _kind(features: FeatureInfo | None) -> str:
    if features is None:
        return "pictures"
    return f"features of encoder {features.encoder[:8]} ({features.tokens} x {features.width})"
