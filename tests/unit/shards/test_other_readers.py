"""Shard folders are plain Parquet: `datasets`, DuckDB and Polars read them, also as docs/shards.md shows."""

import re
from pathlib import Path

import duckdb
import polars
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from ma2mba.shards.manifest import FeatureInfo
from ma2mba.shards.reader import ShardReader
from tests.unit.data.toy_shards import write_shards

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "shards.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^```python (\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
READERS = {
    "datasets": lambda path, cache: list(
        load_dataset("parquet", data_files=str(path), split="train", streaming=True, cache_dir=str(cache))
    ),
    "duckdb": lambda path, _: duckdb.read_parquet(str(path)).to_arrow_table().to_pylist(),
    "polars": lambda path, _: polars.read_parquet(path).to_dicts(),
}
"""Library -> a reader of all rows of a file."""


@pytest.fixture(params=["jpeg", "features"])
def folder(request, tmp_path) -> Path:
    """shards/mine with samples of 3, 70 and 0 frames, of pictures or of features."""
    features = FeatureInfo(tokens=2, width=4, encoder="noise") if request.param == "features" else None
    return write_shards(tmp_path / "shards/mine", [(3, 4), (70, 2), (0, 5)], features=features)


def test_the_page_shows_every_library():
    assert BLOCKS.keys() == READERS.keys()


@pytest.mark.parametrize("library", READERS)
def test_every_row_is_read_as_written(folder, library, tmp_path):
    reader = ShardReader(folder)
    index = READERS[library](folder / "index.parquet", tmp_path)
    assert [row["sample_id"] for row in index] == [row.sample_id for row in reader.rows]
    assert [row["token_ids"] for row in index] == [row.token_ids.tolist() for row in reader.rows]
    assert index == pq.read_table(folder / "index.parquet").to_pylist()
    frames = READERS[library](folder / reader.rows[0].file, tmp_path)
    written = [bytes(frame) for row in reader.rows for frame in reader.frames(row)]
    assert [row["frame"] for row in frames] == written
    assert len(written) == 73


@pytest.mark.parametrize("library", READERS)
def test_the_block_of_the_page_runs(folder, library, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(BLOCKS[library], library, "exec"), names)
    assert "s1" in capsys.readouterr().out
    reader = ShardReader(folder)
    assert names["sample"] == "s0"
    assert names["frame"] == bytes(reader.frames(reader.rows[0], 0, 1)[0])
