"""Data sets in the format of the Hugging Face hub build to the same samples as files, offline, and resume safely."""

import json
import os
import socket
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from datasets import Dataset, DatasetDict

from data_prep.audit import audit
from data_prep.build import build
from data_prep.recipe import load_recipe, resolve
from data_prep.toy.words import save_tokenizer
from ma2mba.errors import UserError
from ma2mba.shards.format import INDEX_FILE
from ma2mba.shards.reader import ShardReader
from tests.unit.annotations.hub_layout import (
    CONFIG,
    SHORT,
    llava_folder,
    scene_records,
    scenewalk_folder,
    segment_records,
    write_videos,
)
from tests.unit.annotations.local_hub import COMMIT, serve
from tests.unit.data_prep.test_build_shards import command, contents

SPLITS = tuple(SHORT)


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A folder with videos, a tokenizer and data sets in every format."""
    folder = tmp_path_factory.mktemp("hub")
    write_videos(folder / "videos", ["0.mp4", "1.mp4", "2.mp4"])
    save_tokenizer(folder / "tokenizer.json")
    for suffix in (".json", ".jsonl", ".parquet", ".arrow"):
        llava_folder(folder / f"llava{suffix}", suffix)
        scenewalk_folder(folder / f"walk{suffix}", scene_records(), suffix)
        scenewalk_folder(folder / f"segments{suffix}", segment_records(), suffix)
    DatasetDict(
        {split: Dataset.from_parquet(str(one)) for split, one in parquet_files(folder / "llava.parquet").items()}
    ).save_to_disk(str(folder / "llava.saved"))
    return folder


def parquet_files(folder: Path) -> dict[str, Path]:
    return {split: next(folder.glob(f"{CONFIG}/*_{short}_*.parquet")) for split, short in SHORT.items()}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing in this process asks for an address. `datasets` ignores the errors of some requests, so count them."""
    asked = []

    def refuse(*args, **_):
        asked.append(args)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert asked == []


def recipe(work: Path, sources: list[dict], name: str = "recipe.yaml", stage: str = "stage2") -> Path:
    content = {"stage": stage, "tokenizer": "tokenizer.json", "image_size": 32, "clips_per_part": 2}
    content["sources"] = [{"media": "videos", "name": "one"} | source for source in sources]
    (work / name).write_text(yaml.safe_dump(content))
    return work / name


def llava(path: str, **more) -> list[dict]:
    return [{"format": "llava_video", "dataset": {"path": path, "split": split} | more} for split in SPLITS]


def samples(out: Path) -> dict[str, object]:
    """What does not depend on the form of the annotations: payload, tokenizer, report, index without recipe_hash."""
    found: dict[str, object] = {
        str(path.relative_to(out)): path.read_bytes() for path in [*out.glob("payload/*"), out / "tokenizer.json"]
    }
    found["report"] = json.loads((out / "report.json").read_text())
    found["index"] = pq.read_table(out / INDEX_FILE).drop(["recipe_hash"]).to_pylist()
    found["rejects"] = [json.loads(line)["reason"] for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert any(name.startswith("payload/") for name in found)
    return found


def every_byte(out: Path) -> dict[str, bytes]:
    """All files but origin.json, which holds the recipe's path."""
    return {name: data for name, data in contents(out).items() if name != "origin.json"}


@pytest.mark.parametrize(
    ("form", "folder", "parts"),
    [
        ("llava_video", "llava.json", [(f"{CONFIG}/{CONFIG}_{SHORT[s]}_*.json", s, CONFIG) for s in SPLITS]),
        ("scenewalk", "walk.jsonl", [("data/*", "train", None)]),
        ("scenewalk_segments", "segments.parquet", [("data/*.parquet", None, None)]),
    ],
)
def test_the_published_files_build_to_the_same_bytes(work, form, folder, parts, tmp_path):
    """Published as JSON, JSON lines and Parquet. Every file is equal, with manifest and rejects."""
    given = [{"path": folder, "split": split, "name": name} for _, split, name in parts]
    sources = {
        "files": [{"format": form, "annotations": f"{folder}/{pattern}"} for pattern, _, _ in parts],
        "dataset": [{"format": form, "dataset": {k: v for k, v in one.items() if v}} for one in given],
    }
    for name, listed in sources.items():
        _, rejects = build(recipe(work, listed), tmp_path / name, workers=1)
        assert rejects
    assert every_byte(tmp_path / "dataset") == every_byte(tmp_path / "files")
    assert build(work / "recipe.yaml", tmp_path / "files", workers=1)[0]["already_built"]


@pytest.fixture(scope="module")
def from_files(work, tmp_path_factory) -> dict[str, dict[str, object]]:
    """Format -> the samples that its published files give."""
    out = tmp_path_factory.mktemp("files")
    named = {
        "llava_video": [f"llava.json/{CONFIG}/{CONFIG}_{short}_processed.json" for short in SHORT.values()],
        "scenewalk": "walk.jsonl/data/*.jsonl",
        "scenewalk_segments": "segments.parquet/data/*.parquet",
    }
    for form, files in named.items():
        build(recipe(work, [{"format": form, "annotations": files}], f"{form}.yaml"), out / form, workers=1)
    return {form: samples(out / form) for form in named}


@pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet", "arrow", "saved"])
def test_llava_video_178k_gives_the_samples_of_its_files(work, from_files, suffix, tmp_path):
    sources = llava(f"llava.{suffix}", **({} if suffix == "saved" else {"name": CONFIG}))
    report, rejects = build(recipe(work, sources), tmp_path / "s", workers=1)
    assert (report["records"], report["samples"], len(rejects)) == (15, 3, 3)
    assert samples(tmp_path / "s") == from_files["llava_video"]


@pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet", "arrow"])
@pytest.mark.parametrize(("form", "folder", "count"), [("scenewalk", "walk", 2), ("scenewalk_segments", "segments", 2)])
def test_scenewalk_gives_the_samples_of_its_files(work, from_files, suffix, form, folder, count, tmp_path):
    source = {"format": form, "dataset": {"path": f"{folder}.{suffix}"}}
    report, _ = build(recipe(work, [source]), tmp_path / "s", workers=1)
    assert report["samples"] == count
    assert samples(tmp_path / "s") == from_files[form]


def test_rejects_name_the_file_and_the_row(work, tmp_path):
    (source,) = llava("llava.parquet", name=CONFIG)[:1]
    _, (reject,) = build(recipe(work, [source]), tmp_path / "s", workers=1)
    assert reject.where == f"llava.parquet/{CONFIG}/{CONFIG}_cap_processed.parquet row 5"
    assert reject.reason == "malformed record: the last human turn has no answer"


def test_the_command_reads_a_folder_without_a_network_and_without_a_cache(work, tmp_path):
    path = recipe(work, llava("llava.parquet", name=CONFIG), "command.yaml")
    env = os.environ | {
        "HF_HOME": str(tmp_path / "hf"),
        "HOME": str(tmp_path / "home"),
        "HF_ENDPOINT": "http://[::1]:9",
    }
    process = command(str(path), "--out", str(tmp_path / "s"), "--workers", "1", "--json", env=env)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert json.loads(out)["samples"] == 3
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("suffix", ["json", "parquet"])
def test_online_reads_a_data_set_of_the_hub(work, from_files, suffix, tmp_path, monkeypatch):
    """A hub on this machine serves the folder. The second run resumes; without --online nothing is asked of the hub."""
    monkeypatch.undo()
    sources = llava("lmms-lab/LLaVA-Video-178K", name=CONFIG)
    args = [str(recipe(work, sources, "online.yaml")), "--out", str(tmp_path / "s"), "--workers", "1", "--json"]
    with serve(work / f"llava.{suffix}", "lmms-lab/LLaVA-Video-178K") as hub:
        env = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub}
        for already_built in (False, True):
            process = command(*args, "--online", env=env)
            out, err = process.communicate()
            assert process.returncode == 0, err
            assert json.loads(out)["already_built"] is already_built
        process = command(*args, env=env)
        _, err = process.communicate()
    assert process.returncode == 2
    assert "If lmms-lab/LLaVA-Video-178K is a name on the Hugging Face hub, give --online" in err
    assert samples(tmp_path / "s") == from_files["llava_video"]
    (name,) = ShardReader(tmp_path / "s").manifest.recipe["sources"][0]["annotations"]
    assert name == f"hf://datasets/lmms-lab/LLaVA-Video-178K@{COMMIT}/{CONFIG}/{CONFIG}_cap_processed.{suffix}"


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        (
            {"path": "llava.json", "name": CONFIG},
            "has the splits caption, open_ended, multi_choice. Set split to one of",
        ),
        (
            {"path": "llava.json", "name": CONFIG, "split": "train"},
            "no split train. Its splits: caption, open_ended, mul",
        ),
        ({"path": "llava.json", "split": "caption"}, "pick one among the available configs: ['0_30_s_nextqa', '1_2_m"),
        ({"path": "llava.json", "name": "x", "split": "caption"}, "'x' not found. Available: ['0_30_s_nextqa', '1_2_m"),
        ({"path": "llava.saved", "split": "test"}, "no split test. Its splits: caption, open_ended, multi_choice"),
        ({"path": "llava.saved", "name": "x"}, "has no configurations. Remove name"),
        (
            {"path": "lmms-lab/LLaVA-Video-178K"},
            "is not a folder. If lmms-lab/LLaVA-Video-178K is a name on the Hugging",
        ),
        ({"path": "gone"}, "is not a folder. Give a folder, or owner/name on the Hugging Face hub"),
        ({"path": "videos"}, "most files are of the kind videofolder. Keep media in another folder"),
    ],
)
def test_a_data_set_that_cannot_be_found(work, dataset, said):
    path = recipe(work, [{"format": "llava_video", "dataset": dataset}], "bad.yaml")
    with pytest.raises(UserError, match=r"sources\.0\.dataset: ") as caught:
        load_recipe(path)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({}, "sources.0: give either annotations (files) or dataset"),
        ({"annotations": "a.json", "dataset": {"path": "llava.json"}}, "sources.0: give either annotations (files) or"),
        (
            {"dataset": {"path": "llava.json", "slpit": "x"}},
            "sources.0.dataset.slpit: unknown key. Known keys: path, name",
        ),
        ({"dataset": {"split": "x"}}, "sources.0.dataset.path: missing. Give it a value"),
        ({"dataset": "llava.json"}, "sources.0.dataset: Input should be a valid dictionary"),
    ],
)
def test_a_source_has_files_or_a_data_set(work, source, said):
    with pytest.raises(UserError) as caught:
        load_recipe(recipe(work, [{"format": "llava_video"} | source], "bad.yaml"))
    assert said in str(caught.value)


@pytest.fixture
def own(work, tmp_path) -> Path:
    """A data set that a test may change, with the videos of `work`, and recipe.yaml about it."""
    llava_folder(tmp_path / "set", ".parquet")
    (tmp_path / "videos").symlink_to(work / "videos")
    save_tokenizer(tmp_path / "tokenizer.json")
    recipe(tmp_path, llava("set", name=CONFIG))
    return tmp_path


def test_a_changed_file_refuses_to_resume_and_to_repair(own):
    build(own / "recipe.yaml", own / "s", workers=1)
    assert build(own / "recipe.yaml", own / "s", workers=1)[0]["already_built"]
    files = parquet_files(own / "set")
    pq.write_table(pq.read_table(files["open_ended"]).slice(0, 2), files["open_ended"])
    with pytest.raises(UserError, match=r"another recipe.*\n  sources\.1\.annotations_sha256\.0: [0-9a-f]{64} -> "):
        build(own / "recipe.yaml", own / "s", workers=1)
    next((own / "s/payload").iterdir()).write_bytes(b"")
    report = audit(own / "s", repair=True)
    assert "the recipe has changed since the build (sources.1.annotations_sha256.0" in str(report.unrepaired)


def test_an_added_file_refuses_to_resume(own):
    scenewalk_folder(own / "walk", scene_records(), ".parquet")
    source = [{"format": "scenewalk", "dataset": {"path": "walk"}}]
    build(recipe(own, source), own / "s", workers=1)
    (own / "walk/data/train-00002-of-00003.parquet").write_bytes(
        (own / "walk/data/train-00000-of-00002.parquet").read_bytes()
    )
    with pytest.raises(UserError, match=r"sources\.0\.annotations: .*train-00002-of-00003"):
        build(own / "recipe.yaml", own / "s", workers=1)


def test_damage_is_repaired_from_a_data_set(own):
    build(own / "recipe.yaml", own / "s", workers=1)
    before = samples(own / "s")
    for damaged in [next((own / "s/payload").iterdir()), own / "s" / INDEX_FILE]:
        damaged.write_bytes(damaged.read_bytes()[:-9])
    report = audit(own / "s", repair=True)
    assert report.sound
    assert len(report.repaired) == 2
    assert samples(own / "s") == before
    assert len(ShardReader(own / "s").rows) == 3


def test_a_recipe_of_files_resolves_as_before(work):
    """A key more in the resolved recipe would change its hash, and audit could not repair older shards."""
    path = recipe(work, [{"format": "llava_video", "annotations": f"llava.json/{CONFIG}/*.json"}], "files.yaml")
    (source,) = resolve(load_recipe(path), work, "")["sources"]
    assert list(source) == ["format", "name", "annotations", "media", "weight", "annotations_sha256"]


def test_a_damaged_file_is_named(own):
    file = parquet_files(own / "set")["multi_choice"]
    whole = file.read_bytes()
    for damaged in (whole[:-40], b"", whole[:40] + bytes(len(whole) - 100) + whole[-60:]):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{file.name}: not a complete Parquet file .*Download or copy it again"):
            build(own / "recipe.yaml", own / "s", workers=1)
    assert not (own / "s").exists()
