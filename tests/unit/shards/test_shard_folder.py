"""Shard folders: ranges of frames read back as written, and errors that name the altered file."""

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ma2mba.errors import UserError
from ma2mba.files import atomic_write
from ma2mba.shards.format import INDEX_FILE, MANIFEST_FILE, IndexRow
from ma2mba.shards.manifest import Manifest, ShardDamaged, SourceEntry, file_entry, read_manifest, write_manifest
from ma2mba.shards.reader import ShardReader, find_damage
from ma2mba.shards.writer import PayloadFrame, PayloadWriter, payload_hash, write_index

LENGTHS = {"a": 64, "b": 1, "none": 0, "c": 150, "d": 65}


def frame_bytes(sample: str, k: int) -> bytes:
    return np.random.default_rng([ord(sample[0]), k]).bytes(300 + k)


def row(sample: str, file: str, first: int, frames: list[bytes]) -> IndexRow:
    count = len(frames)
    return IndexRow(
        sample_id=sample,
        token_ids=np.arange(5, dtype=np.int32) + count,
        supervised=np.array([False, False, True, True, False]),
        frame_positions=np.full(count, 2, np.int32),
        timestamps=np.arange(count, dtype=np.float64),
        file=file if count else "",
        first_row_group=first,
        frames=count,
        duration=count + 0.25,
        dataset="set",
        source=f"{sample}.mp4",
        source_bytes=10,
        source_sha256="0" * 64,
        payload_xxh3=payload_hash(frames),
        decoder="pyav",
        decoder_version="1",
        recipe_hash="r",
        status="ok",
        reason="",
    )


@pytest.fixture
def folder(tmp_path) -> Path:
    rows = []
    with PayloadWriter(tmp_path, 0) as writer:
        for sample, length in LENGTHS.items():
            data = [frame_bytes(sample, k) for k in range(length)]
            first = writer.add(sample, [PayloadFrame(float(k), k - 0.01, d) for k, d in enumerate(data)])
            rows.append(row(sample, writer.name, first, data))
    write_index(tmp_path / INDEX_FILE, rows)
    (tmp_path / "tokenizer.json").write_text("{}")
    names = [INDEX_FILE, "tokenizer.json", "payload/part-00000.parquet"]
    counts = {"samples": len(rows), "frames": sum(LENGTHS.values()), "tokens": 25}
    about = {
        "recipe": {"stage": "x"},
        "recipe_hash": "r",
        "tokenizer_sha256": "t",
        "decoder": "pyav",
        "decoder_version": "1",
    }
    files = [file_entry(tmp_path, name) for name in names]
    about["sources"] = [SourceEntry(name="set", format="llava", weight=2.5, samples=len(rows))]
    write_manifest(tmp_path, Manifest(image_size=56, fps=1.0, files=files, **counts, **about))
    return tmp_path


def rows_by_id(reader: ShardReader) -> dict[str, IndexRow]:
    return {row.sample_id: row for row in reader.rows}


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_rows_come_back_with_their_types(folder):
    found = rows_by_id(ShardReader(folder))
    assert list(found) == list(LENGTHS)
    c = found["c"]
    assert (c.token_ids.dtype, c.supervised.dtype, c.frame_positions.dtype, c.timestamps.dtype) == (
        np.int32,
        np.bool_,
        np.int32,
        np.float64,
    )
    assert c.token_ids.tolist() == [150, 151, 152, 153, 154]
    assert c.supervised.tolist() == [False, False, True, True, False]
    assert (c.dataset, c.source) == ("set", "c.mp4")
    assert ShardReader(folder).manifest.sources[0].weight == 2.5
    assert found["none"].frame_positions.shape == (0,)
    assert c.timestamps.tolist() == list(range(150))


@pytest.mark.parametrize(("start", "stop"), [(0, 150), (0, 1), (63, 65), (64, 128), (149, 150), (70, 70), (100, 150)])
def test_any_range_of_frames(folder, start, stop):
    reader = ShardReader(folder)
    frames = reader.frames(rows_by_id(reader)["c"], start, stop)
    assert frames == [frame_bytes("c", k) for k in range(start, stop)]


def test_a_range_outside_is_an_index_error(folder):
    reader = ShardReader(folder)
    for start, stop in ((0, 151), (-1, 3), (5, 4)):
        with pytest.raises(IndexError):
            reader.frames(rows_by_id(reader)["c"], start, stop)
    assert reader.frames(rows_by_id(reader)["none"]) == []


def test_row_groups_hold_64_frames_of_one_sample(folder):
    with pq.ParquetFile(folder / "payload/part-00000.parquet") as file:
        groups = [file.read_row_group(i).column("sample_id").to_pylist() for i in range(file.num_row_groups)]
        column = file.metadata.row_group(0).column(3)
    assert [(set(group), len(group)) for group in groups] == [
        ({"a"}, 64), ({"b"}, 1), ({"c"}, 64), ({"c"}, 64), ({"c"}, 22), ({"d"}, 64), ({"d"}, 1)
    ]  # fmt: skip
    assert column.compression == "UNCOMPRESSED"
    assert "RLE_DICTIONARY" not in column.encodings


def test_only_the_needed_row_groups_are_read(folder):
    """A range can be read although the bytes of another row group are damaged."""
    path = folder / "payload/part-00000.parquet"
    data = path.read_bytes()
    at = data.index(frame_bytes("c", 10))
    flip(path, at)
    reader = ShardReader(folder)
    c = rows_by_id(reader)["c"]
    assert reader.frames(c, 64, 150) == [frame_bytes("c", k) for k in range(64, 150)]
    with pytest.raises(ShardDamaged, match=r"part-00000\.parquet: sample c is damaged"):
        reader.frames(c, 0, 1)
    assert [(damage.file, damage.sample) for damage in find_damage(folder)] == [
        ("payload/part-00000.parquet", ""),
        ("payload/part-00000.parquet", "c"),
    ]


def test_an_undamaged_folder_has_no_damage_and_pickles(folder):
    assert find_damage(folder) == []
    reader = ShardReader(folder)
    reader.frames(reader.rows[0])
    again = pickle.loads(pickle.dumps(reader))
    assert again.frames(again.rows[0]) == reader.frames(reader.rows[0])
    assert reader.tokenizer_path.read_text() == "{}"


@pytest.mark.parametrize("name", [INDEX_FILE, "tokenizer.json"])
def test_a_flipped_byte_is_refused_on_opening(folder, name):
    flip(folder / name, (folder / name).stat().st_size // 2)
    with pytest.raises(ShardDamaged, match=name):
        ShardReader(folder)


@pytest.mark.parametrize("name", [INDEX_FILE, "payload/part-00000.parquet"])
def test_a_short_or_missing_file_is_refused_on_opening(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ShardDamaged, match=f"{name}.*the manifest says"):
        ShardReader(folder)
    path.unlink()
    with pytest.raises(ShardDamaged, match=f"{name}.*missing"):
        ShardReader(folder)


def test_every_altered_manifest_is_refused(folder):
    path = folder / MANIFEST_FILE
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"samples": 4}))
    with pytest.raises(ShardDamaged, match="does not match its checksum"):
        ShardReader(folder)
    path.write_text(json.dumps(content | {"format_version": 1}))
    with pytest.raises(UserError, match="has format version 1, but this program reads 2"):
        ShardReader(folder)
    path.write_text("{")
    with pytest.raises(ShardDamaged, match="damaged"):
        ShardReader(folder)
    path.unlink()
    with pytest.raises(UserError, match="not found"):
        read_manifest(folder)


def test_a_failed_write_leaves_nothing(tmp_path):
    def fail():
        with PayloadWriter(tmp_path, 3) as writer:
            writer.add("a", [PayloadFrame(0.0, 0.0, b"x")])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_atomic_write_keeps_the_old_content_on_failure(tmp_path):
    path = tmp_path / "f.txt"
    path.write_text("old")

    def fail():
        with atomic_write(path) as file:
            file.write("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f.txt"]
