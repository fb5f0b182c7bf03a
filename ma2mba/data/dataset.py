"""Shard folders as one numbered list of samples, and one sample's frames decoded."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import simplejpeg
import xxhash

from ma2mba.data.batch import Sample, target_count
from ma2mba.errors import UserError
from ma2mba.shards.reader import IndexRow, ShardReader

READ_FRAMES = 512


class Dataset:
    """The samples of one or more shard folders, in the order of their indexes.

    Batches are planned from numbers that the index alone gives, one entry a sample, int64: `length_N` (tokens, text and
    visual), `targets_N` (tokens that the loss is taken over) and `frames_N`.
    Raises UserError when a folder is damaged, was made for another image size or tokenizer, or teaches nothing.
    """

    def __init__(self, folders: Sequence[Path | str], image_size: int, tokens_per_frame: int):
        self.readers = [ShardReader(Path(folder)) for folder in folders]
        self.folders = [Path(folder) for folder in folders]
        self.image_size = image_size
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

    @cached_property
    def fingerprint(self) -> str:
        """Names the samples and their order: two datasets with the same fingerprint give the same batches."""
        digest = xxhash.xxh3_128()
        for (_, row), length in zip(self.samples, self.length_N, strict=True):
            digest.update(f"{row.sample_id}\0{length}\n".encode())
        return digest.hexdigest()

    def __getitem__(self, index: int) -> Sample:
        """One sample, its frames decoded. Raises UserError (ShardDamaged) when its bytes are not what was written."""
        reader, row = self.samples[index]
        frames_NCHW = np.empty((row.frames, 3, self.image_size, self.image_size), np.uint8)
        for start in range(0, row.frames, READ_FRAMES):
            for n, jpeg in enumerate(reader.frames(row, start, min(start + READ_FRAMES, row.frames)), start):
                frames_NCHW[n] = self._decode(jpeg, row.sample_id, n)
        return Sample(row.sample_id, row.token_ids, row.supervised, row.frame_positions, frames_NCHW)

    def _decode(self, jpeg: bytes, sample_id: str, n: int) -> np.ndarray:
        try:
            frame_HWC = simplejpeg.decode_jpeg(jpeg, colorspace="RGB")
        except ValueError as error:
            raise UserError(
                f"frame {n} of sample {sample_id} is not a JPEG image ({error}); preprocess this sample again"
            ) from error
        if frame_HWC.shape[:2] != (self.image_size, self.image_size):
            height, width = frame_HWC.shape[:2]
            raise UserError(
                f"frame {n} of sample {sample_id} is {width}x{height} but its manifest says "
                f"{self.image_size}x{self.image_size}; preprocess this sample again"
            )
        return frame_HWC.transpose(2, 0, 1)

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
