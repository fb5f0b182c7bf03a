"""The files of a shard folder, and the columns of its Parquet files.

A build consists of numbered shards. Each shard has one payload file, payload/part-00000.parquet and so on.
"""

import re
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa

FORMAT_VERSION = 2
FRAMES_PER_ROW_GROUP = {"jpeg": 64, "features": 16}
"""Payload kind -> frames in a row group. A row group holds frames of one sample only."""
INDEX_FILE, MANIFEST_FILE, TOKENIZER_FILE = "index.parquet", "manifest.json", "tokenizer.json"
REJECTS_FILE, REPORT_FILE, PAYLOAD_FOLDER = "rejects.jsonl", "report.json", "payload"
ORIGIN_FILE = "origin.json"
"""The paths of the annotations and media that the shards were built from. The manifest does not list this file."""

PAYLOAD_NAME = re.compile(r"payload/part-[0-9]{5,9}\.parquet")
NAMES = {INDEX_FILE, REJECTS_FILE, REPORT_FILE, TOKENIZER_FILE}
"""The names that a manifest lists, besides payload files."""

PAYLOAD_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("t", pa.float64(), nullable=False),
        pa.field("pts", pa.float64(), nullable=False),
        pa.field("frame", pa.binary(), nullable=False),
    ]
)


def payload_schema(frame_bytes: int | None = None) -> pa.Schema:
    """Return the columns of a payload file. If all frames have `frame_bytes` (features), it stores no lengths."""
    if frame_bytes is None:
        return PAYLOAD_SCHEMA
    return PAYLOAD_SCHEMA.set(3, pa.field("frame", pa.binary(frame_bytes), nullable=False))


INDEX_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("supervised", pa.list_(pa.bool_()), nullable=False),
        pa.field("frame_positions", pa.list_(pa.int32()), nullable=False),
        pa.field("timestamps", pa.list_(pa.float64()), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("first_row_group", pa.int32(), nullable=False),
        pa.field("frames", pa.int32(), nullable=False),
        pa.field("duration", pa.float64(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("source_bytes", pa.int64(), nullable=False),
        pa.field("source_sha256", pa.string(), nullable=False),
        pa.field("payload_xxh3", pa.string(), nullable=False),
        pa.field("decoder", pa.string(), nullable=False),
        pa.field("decoder_version", pa.string(), nullable=False),
        pa.field("recipe_hash", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, eq=False)
class IndexRow:
    """One sample: its text, the location of its frames, and their origin (docs/shards.md explains each field)."""

    sample_id: str
    token_ids: np.ndarray
    """int32 (T,)"""
    supervised: np.ndarray
    """bool (T,)"""
    frame_positions: np.ndarray
    """int32 (frames,): the text token that each frame precedes, 0..T, in ascending order"""
    timestamps: np.ndarray
    """float64 (frames,): when each frame was sampled, in seconds of the video"""
    file: str
    first_row_group: int
    frames: int
    duration: float
    dataset: str
    source: str
    source_bytes: int
    source_sha256: str
    payload_xxh3: str
    decoder: str
    decoder_version: str
    recipe_hash: str
    status: str
    reason: str


LIST_TYPES = {"token_ids": np.int32, "supervised": np.bool_, "frame_positions": np.int32, "timestamps": np.float64}


def rows_to_table(rows: list[IndexRow]) -> pa.Table:
    """Return index rows as a table with INDEX_SCHEMA."""
    columns = {field.name: [getattr(row, field.name) for row in rows] for field in fields(IndexRow)}
    return pa.table(columns, schema=INDEX_SCHEMA)
