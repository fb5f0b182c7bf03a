"""Samples that a recipe leaves out, shards that fit the number of samples, and a progress that moves."""

import json
import time

import numpy as np
import pytest
import yaml
from PIL import Image

from data_prep.build import build
from data_prep.parts import samples_per_shard
from data_prep.tally import Tally, read_tally, remove_tally
from data_prep.toy.words import save_tokenizer
from ma2mba import progress
from ma2mba.data.dataset import Dataset
from ma2mba.errors import UserError
from ma2mba.progress import Reporter
from ma2mba.shards.reader import ShardReader
from ma2mba.training.recipe.loading import load_recipe, parse_recipe

TALK = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "four"}]


@pytest.fixture
def recipe(tmp_path):
    """Write a recipe of five pictures, with the given changes."""
    save_tokenizer(tmp_path / "tokenizer.json")
    for i in range(5):
        Image.fromarray(np.full((40, 40, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
    records = [{"id": str(i), "image": f"{i}.png", "conversations": TALK} for i in range(5)] + [{"id": "bad"}]
    (tmp_path / "a.json").write_text(json.dumps(records))

    def write(**changes):
        source = {"format": "llava", "annotations": "a.json", "media": "."}
        content = {"stage": "s", "tokenizer": "tokenizer.json", "image_size": 28, "sources": [source]}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content | changes))
        return tmp_path / "recipe.yaml"

    return write


def ids(folder):
    return [row.sample_id for row in ShardReader(folder).rows]


def test_a_build_leaves_samples_out(recipe, tmp_path):
    report, _ = build(recipe(exclude=["1", 3, "bad"]), tmp_path / "s", workers=1)
    assert ids(tmp_path / "s") == ["0", "2", "4"]
    assert (report["excluded"], report["samples"]) == (2, 3)
    (tmp_path / "ids.txt").write_text("3\n\n 1 \nbad\n")
    assert build(recipe(exclude="ids.txt"), tmp_path / "s", workers=1)[0]["already_built"]
    with pytest.raises(UserError, match="excluded: 3 -> None"):
        build(recipe(), tmp_path / "s", workers=1)


@pytest.mark.parametrize(
    ("exclude", "said"),
    [
        (["1", "7", "x"], "the recipe: exclude names ids that no sample has: 7, x. Correct or remove them"),
        ("gone.txt", "gone.txt is not a file"),
        ("picture.txt", "not UTF-8 text"),
        ([True], "exclude: give a list of sample ids, or the path of a file with one id per line"),
        ({"a": 1}, "exclude: give a list of sample ids, or the path of a file with one id per line"),
    ],
)
def test_ids_that_cannot_be_left_out(exclude, said, recipe, tmp_path):
    (tmp_path / "picture.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=said):
        build(recipe(exclude=exclude), tmp_path / "s", workers=1)


def test_training_leaves_samples_out(recipe, tmp_path):
    build(recipe(), tmp_path / "s", workers=1)
    whole = Dataset([tmp_path / "s"], 28, 4)
    some = Dataset([tmp_path / "s"], 28, 4, exclude=frozenset({"0", "3"}))
    assert [some[i].sample_id for i in range(len(some))] == ["1", "2", "4"]
    assert [list(part.samples) for part in some.mixture] == [[0, 1, 2]]
    assert some.fingerprint != whole.fingerprint
    assert Dataset([tmp_path / "s"], 28, 4, exclude=frozenset()).fingerprint == whole.fingerprint
    with pytest.raises(UserError, match="s: exclude names ids that no sample has: 9"):
        Dataset([tmp_path / "s"], 28, 4, exclude=frozenset({"0", "9"}))


def test_the_key_in_a_training_recipe(tmp_path):
    content = {"stage": "s", "data": "d", "run": "r", "init_from": "m", "global_batch": 1, "epochs": 1}
    content |= {"trainable": {"projector": 1.0}}
    assert parse_recipe(content).excluded == frozenset()
    assert parse_recipe(content | {"exclude": ["a", 7]}).excluded == {"a", "7"}
    (tmp_path / "ids.txt").write_text("a\nb\n")
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(content | {"exclude": "ids.txt"}))
    assert load_recipe(tmp_path / "t.yaml").excluded == {"a", "b"}
    with pytest.raises(UserError, match=r"exclude: .*give a list of sample ids"):
        parse_recipe(content | {"exclude": 3})


@pytest.mark.parametrize(("clips", "size"), [(1, 2), (29, 2), (64, 2), (96, 3), (2047, 63), (2048, 64), (10**6, 64)])
def test_shards_fit_the_number_of_samples(clips, size):
    assert samples_per_shard(clips) == size


def test_shards_do_not_depend_on_workers(recipe, tmp_path):
    for workers in (1, 2):
        build(recipe(), tmp_path / f"s{workers}", workers=workers)
    first, second = (sorted(path for path in (tmp_path / f"s{n}").rglob("*.parquet")) for n in (1, 2))
    assert [path.name for path in first] == [
        "index.parquet",
        "part-00000.parquet",
        "part-00001.parquet",
        "part-00002.parquet",
    ]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_folder_with_larger_shards_is_resumed(recipe, tmp_path):
    """Builds had 64 samples in a shard, whatever their size."""
    build(recipe(clips_per_part=64), tmp_path / "s", workers=1)
    assert build(recipe(), tmp_path / "s", workers=1)[0]["already_built"]


def test_a_tally_counts_as_frames_come(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.tally.EVERY", 0.0)
    assert read_tally(tmp_path, 3) == (0, 0.0)
    tally = Tally(tmp_path, 3, fps=2.0)
    for _ in range(4):
        tally.frame()
    assert read_tally(tmp_path, 3) == (4, 2.0)
    tally.end(10, 5.5)
    tally.begin()
    tally.frame()
    tally.begin()  # the sample was rejected
    tally.frame()
    assert read_tally(tmp_path, 3) == (11, 6.0)
    remove_tally(tmp_path, 3)
    assert read_tally(tmp_path, 3) == (0, 0.0)


def test_the_time_left_is_shown_only_while_it_is_known(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with Reporter("work", 4) as reporter:
        for seconds, count in ((10, 1), (20, 1), (30, 1), (35, 0), (41, 0), (100, 0), (101, 1)):
            clock[0] = float(seconds)
            reporter.advance(count, "note")
    assert capsys.readouterr().err.splitlines() == [
        "work: 1/4, note, 30 s left",
        "work: 2/4, note, 20 s left",
        "work: 3/4, note, 10 s left",
        "work: 3/4, note, 12 s left",
        "work: 3/4, note, 14 s left",
        "work: 3/4, note",
        "work: 4/4, note, finishing",
    ]
