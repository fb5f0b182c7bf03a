"""Read index files: bounded in memory, and refused if they say what cannot be."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ma2mba.files import read_bounded
from ma2mba.limits import limits, raise_limit
from ma2mba.shards.format import FRAMES_PER_ROW_GROUP, INDEX_SCHEMA, LIST_TYPES, IndexRow
from ma2mba.shards.manifest import Manifest
from ma2mba.shards.structure import ParquetPages, as_malformed, open_parquet
from ma2mba.shards.thrift import Malformed
from ma2mba.text import parse_json

FREE_BYTES = 1 << 28
"""Bytes of memory that every index may take, however small its file is."""
ROW_BYTES, LEVEL_BYTES = 1 << 10, 4
"""Bytes of memory for the objects of a row, and for the levels of each element of a list while it is read."""
ROW_GROUPS = 4096
LONGEST_SECONDS = 1e9
"""The longest duration, and the latest time of a frame."""
STATUSES = ("ok", "partial")
VOCABULARY_BYTES, VOCABULARY_VALUES = 64 << 20, 4_000_000
STRINGS = [field.name for field in INDEX_SCHEMA if field.type == pa.string()]
Fault = tuple[str, str]
"""A sample ("" for the whole index) and what is wrong."""


@dataclass(frozen=True)
class Lists:
    """A column of lists: those of row r are values[offsets[r] : offsets[r + 1]]."""

    values: np.ndarray
    offsets: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def row_of(self, at: int) -> int:
        """Return the row that contains the element number `at`."""
        return int(np.searchsorted(self.offsets, at, side="right")) - 1


@dataclass(frozen=True)
class Words:
    """A column of strings: the string of row r is words[codes[r]]."""

    codes: np.ndarray
    words: list[str]

    def __getitem__(self, row: int) -> str:
        return self.words[self.codes[row]]

    def having(self, wanted: set[str]) -> np.ndarray:
        """Return for each row whether its string is in `wanted`."""
        return np.array([word in wanted for word in self.words], bool)[self.codes]


@dataclass(frozen=True)
class Index:
    """The columns of an index."""

    lists: dict[str, Lists]
    strings: dict[str, Words]
    numbers: dict[str, np.ndarray]

    @cached_property
    def rows(self) -> list[IndexRow]:
        columns = []
        for field in fields(IndexRow):
            if found := self.lists.get(field.name):
                columns.append([found.values[a:b] for a, b in itertools.pairwise(found.offsets.tolist())])
            elif words := self.strings.get(field.name):
                columns.append(np.array(words.words, object)[words.codes].tolist())
            else:
                columns.append(self.numbers[field.name].tolist())
        return [IndexRow(*values) for values in zip(*columns, strict=True)]


def read_index(path: Path) -> Index:
    """Read what `write_index` wrote. Raise OSError or ValueError for any other file, before it takes memory."""
    with ParquetPages(path, statistics=True) as pages:
        groups = pages.read_footer(ROW_GROUPS, len(INDEX_SCHEMA))
        needed = sum(group.rows for group in groups) * ROW_BYTES
        for group in groups:
            for field, chunk in zip(INDEX_SCHEMA, group.chunks, strict=True):
                needed += chunk.unpacked + chunk.values * (LEVEL_BYTES + 8 if field.name in LIST_TYPES else 4)
                _check_memory(path, needed)
                pages.check_chunk(chunk, field.name)
        with open_parquet(path, INDEX_SCHEMA, STRINGS) as file, as_malformed():
            table = file.read()
            table.validate()
    return Index(
        {name: _lists(table.column(name), dtype) for name, dtype in LIST_TYPES.items()},
        {name: _words(table.column(name)) for name in STRINGS},
        {
            field.name: table.column(field.name).to_numpy()
            for field in INDEX_SCHEMA
            if field.name not in LIST_TYPES and field.name not in STRINGS
        },
    )


def _check_memory(path: Path, needed: int) -> None:
    most = max(FREE_BYTES, int(path.stat().st_size * limits().index_expansion))
    if needed > most:
        raise Malformed(
            f"would take more than {most >> 20:,} MB of memory, {limits().index_expansion:g} times its size. "
            f"{raise_limit('index_expansion')}"
        )


def _lists(column: pa.ChunkedArray, dtype: type) -> Lists:
    values, offsets, last = [], [np.zeros(1, np.int64)], 0
    for chunk in column.chunks:
        starts = chunk.offsets.to_numpy().astype(np.int64)
        inner = chunk.values.slice(int(starts[0]), int(starts[-1] - starts[0]))
        if chunk.null_count or inner.null_count:
            raise Malformed("contains null")
        values.append(inner.to_numpy(zero_copy_only=False).astype(dtype, copy=False))
        offsets.append(starts[1:] - starts[0] + last)
        last = int(offsets[-1][-1]) if len(offsets[-1]) else last
    whole = values[0] if len(values) == 1 else np.concatenate([np.empty(0, dtype), *values])
    return Lists(whole, np.concatenate(offsets))


def _words(column: pa.ChunkedArray) -> Words:
    codes, places = [np.empty(0, np.int64)], dict[str, int]()
    for chunk in column.chunks:
        if chunk.null_count or chunk.dictionary.null_count:
            raise Malformed("contains null")
        place_of = np.array([places.setdefault(word, len(places)) for word in chunk.dictionary.to_pylist()], np.int64)
        codes.append(place_of[chunk.indices.to_numpy()])
    return Words(np.concatenate(codes), list(places))


def vocabulary_size(tokenizer: Path) -> int | None:
    """Return one more than the largest id of a tokenizer.json, None if it has no vocabulary.

    Raise UserError if it is no regular file or too large, ValueError if it is not JSON.
    """
    content = parse_json(read_bounded(tokenizer, VOCABULARY_BYTES), VOCABULARY_VALUES)
    content = content if isinstance(content, dict) else {}
    model, added = content.get("model"), content.get("added_tokens")
    known = model.get("vocab") if isinstance(model, dict) else None
    ids: list[Any] = list(known.values()) if isinstance(known, dict) else []
    ids += range(len(known)) if isinstance(known, list) else []
    ids += [token.get("id") for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    return 1 + max((i for i in ids if isinstance(i, int)), default=-1) or None


def find_faults(index: Index, manifest: Manifest, vocabulary: int | None) -> Iterator[Fault]:
    """Yield what an index says that cannot be true of a folder with this manifest: the first sample of each fault."""
    yield from sample_faults(index, vocabulary)
    yield from _wrong_places(index, manifest)
    yield from _wrong_counts(index, manifest)


def sample_faults(index: Index, vocabulary: int | None = None) -> Iterator[Fault]:
    """Yield what an index says that cannot be true of any sample: the first sample of each fault.

    `vocabulary`: the tokenizer's number of tokens, if it is known.
    """
    names = index.strings["sample_id"]
    twice = np.flatnonzero(np.bincount(names.codes, minlength=len(names.words)) > 1)
    if len(twice):
        yield names.words[int(twice[0])], "this sample is in the index twice"

    def first(wrong: np.ndarray, what: str) -> Iterator[Fault]:
        if len(found := np.flatnonzero(wrong)):
            yield names[int(found[0])], what

    frames = index.numbers["frames"]
    for name, expected in (("supervised", "token_ids"), ("frame_positions", "frames"), ("timestamps", "frames")):
        length = frames if expected == "frames" else index.lists[expected].lengths
        yield from first(index.lists[name].lengths != length, f"{name} and {expected} differ in length")
    yield from first(frames < 0, "its number of frames is negative")
    yield from _wrong_elements(index, vocabulary)
    duration, status = index.numbers["duration"], index.strings["status"]
    yield from first(~_seconds(duration), "its duration is not a number of seconds")
    yield from first(index.numbers["source_bytes"] < 0, "source_bytes is negative")
    yield from first(~status.having(set(STATUSES)), f"its status is not one of {', '.join(STATUSES)}")
    unexplained = status.having({"partial"}) & index.strings["reason"].having({""})
    yield from first(unexplained, "its status is partial, but it has no reason")


def _wrong_counts(index: Index, manifest: Manifest) -> Iterator[Fault]:
    frames, datasets = index.numbers["frames"], index.strings["dataset"]
    found = {
        "samples": len(frames),
        "frames": int(frames.sum(dtype=np.int64)),
        "tokens": len(index.lists["token_ids"].values),
    }
    said = {key: getattr(manifest, key) for key in found}
    if found != said:
        yield "", f"has {_counts(found)}; the manifest {_counts(said)}"
    per_word = np.bincount(datasets.codes, minlength=len(datasets.words)).tolist()
    per_dataset = dict(zip(datasets.words, per_word, strict=True))
    for source in manifest.sources:
        if (count := per_dataset.get(source.name, 0)) != source.samples:
            yield "", f"has {count} samples of {source.name!r}; the manifest {source.samples}"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.items())


def _wrong_elements(index: Index, vocabulary: int | None) -> Iterator[Fault]:
    names, lists = index.strings["sample_id"], index.lists

    def first(name: str, wrong: np.ndarray, what: str) -> Iterator[Fault]:
        if len(found := np.flatnonzero(wrong)):
            row = lists[name].row_of(int(found[0]))
            yield names[row], what.format(lists[name].values[found[0]], int(found[0] - lists[name].offsets[row]))

    tokens = lists["token_ids"].values
    yield from first("token_ids", tokens < 0, "token {1} is {0}, which is negative")
    if vocabulary is not None:
        yield from first(
            "token_ids", tokens >= vocabulary, f"token {{1}} is {{0}}; the tokenizer ends at {vocabulary - 1}"
        )
    positions, seconds = lists["frame_positions"], lists["timestamps"].values
    yield from first("frame_positions", positions.values < 0, "the position of frame {1} is {0}, which is negative")
    if len(positions.offsets) == len(lists["token_ids"].offsets):
        last = np.repeat(lists["token_ids"].lengths, positions.lengths)
        yield from first(
            "frame_positions", positions.values > last, "the position of frame {1} is {0}, after all tokens"
        )
    yield from first("frame_positions", _falls(positions), "the position of frame {1} is {0}, before an earlier frame")
    yield from first("timestamps", ~_seconds(seconds), "the time of frame {1} is {0}, not a number of seconds")
    yield from first("timestamps", _falls(lists["timestamps"]), "the time of frame {1} is {0}, before an earlier frame")


def _seconds(values: np.ndarray) -> np.ndarray:
    return (values >= 0) & (values <= LONGEST_SECONDS)


def _falls(column: Lists) -> np.ndarray:
    """Return for each element whether it is smaller than the element before it in the same list."""
    falls = np.zeros(len(column.values), bool)
    falls[1:] = column.values[1:] < column.values[:-1]
    starts = column.offsets[:-1]
    falls[starts[starts < len(falls)]] = False
    return falls


def _wrong_places(index: Index, manifest: Manifest) -> Iterator[Fault]:
    """Yield samples whose frames cannot be where the index says. The payload's footer is compared when it is opened."""
    names, files = index.strings["sample_id"], index.strings["file"]
    frames, start = index.numbers["frames"], index.numbers["first_row_group"].astype(np.int64)
    count = row_groups(frames, manifest)

    def first(wrong: np.ndarray, what: str) -> Iterator[Fault]:
        if len(found := np.flatnonzero(wrong)):
            yield names[int(found[0])], what

    known = {source.name for source in manifest.sources}
    yield from first(~index.strings["dataset"].having(known), "its data set is not in the manifest's sources")
    payload = {entry.name for entry in manifest.files if entry.is_payload}
    yield from first((frames > 0) & ~files.having(payload), "its file is not a payload file of the manifest")
    yield from first((frames == 0) & ~files.having({""}), "it has a file but no frames")
    yield from first((frames > 0) & (start < 0), "first_row_group is negative")
    order = np.lexsort((start, files.codes))
    order = order[frames[order] > 0]
    code, begin, end = files.codes[order], start[order], (start + count)[order]
    overlaps = np.zeros(len(frames), bool)
    overlaps[order[1:]] = (code[1:] == code[:-1]) & (begin[1:] < end[:-1])
    yield from first(overlaps, "its row groups belong to another sample too")


def row_groups(frames: np.ndarray, manifest: Manifest) -> np.ndarray:
    """Return the number of row groups of each sample, given its number of frames."""
    return -(-frames.astype(np.int64) // FRAMES_PER_ROW_GROUP[manifest.kind])
