"""docs/own_videos.md: its smallest recipe builds shards, and every format's example record is read without a reject."""

import json
import re
from fractions import Fraction
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from data_prep.build import build
from data_prep.reading import read_sources
from data_prep.recipe import load_recipe
from data_prep.sources import format_names
from data_prep.toy.words import save_tokenizer
from ma2mba.evaluation.tasks import read_tasks
from ma2mba.shards.reader import ShardReader
from tests.unit.video.numbered_video import write

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "own_videos.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(json|yaml|csv) (\S+)(?: (\S+))?\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
FORMATS = {
    name: [(file, text) for _, n, file, text in BLOCKS if n == name] for _, name, _, _ in BLOCKS if "." not in name
}
SUFFIX = {"webvid": "csv", "nextqa_mc": "csv", "nextqa_oe": "csv", "scenewalk": "jsonl"}


@pytest.fixture
def folder(tmp_path) -> Path:
    """my-data/ as the page shows it, with a video of 4 s."""
    (tmp_path / "videos/clips").mkdir(parents=True)
    write(tmp_path / "videos/kitchen.mp4", range(32), Fraction(1, 8))
    for other in ("videos/clips/kitchen.mp4", "videos/v_kitchen.mp4"):
        (tmp_path / other).write_bytes((tmp_path / "videos/kitchen.mp4").read_bytes())
    save_tokenizer(tmp_path / "tokenizer.json")
    for _, name, _, text in BLOCKS:
        if "." in name:
            (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_the_smallest_recipe_builds_and_the_task_file_is_read(folder):
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "image_size": 56}))
    report, rejects = build(folder / "recipe.yaml", folder / "shards", workers=1)
    assert rejects == []
    assert (report["samples"], report["frames"]) == (1, 4)
    assert len(ShardReader(folder / "shards").rows) == 1
    (question,) = read_tasks(folder / "task.jsonl")
    assert question.video == folder / "videos/kitchen.mp4"


@pytest.mark.parametrize("name", FORMATS)
def test_the_example_record_of_a_format_is_read(folder, name):
    files = []
    for file, text in FORMATS[name]:
        path = folder / (file or f"{name}.{SUFFIX.get(name, 'json')}")
        if name == "scenewalk_segments":
            path = path.with_suffix(".parquet")
            pq.write_table(pa.Table.from_pylist([json.loads(text)]), path)
        else:
            path.write_text(text, encoding="utf-8")
        files.append(path.name)
    source = {"format": name, "annotations": files, "media": "videos"}
    recipe = {"stage": "stage2", "tokenizer": "tokenizer.json", "sources": [source]}
    (folder / "one.yaml").write_text(yaml.safe_dump(recipe))
    reading = read_sources(load_recipe(folder / "one.yaml"), folder)
    assert reading.rejects == []
    assert len(reading.clips) == 1
    assert reading.clips[0].media is None or reading.clips[0].media.parent.is_dir()


def test_every_format_has_an_example():
    assert sorted(FORMATS) == format_names()
