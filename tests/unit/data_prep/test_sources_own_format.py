"""A format from a file outside the package: registered, built to shards from a real video, read back."""

import json
import os
import runpy
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import yaml

from data_prep.build import build
from data_prep.clips import Clip
from data_prep.recipe import load_recipe
from data_prep.sources import find_format, format_names, register, registry
from data_prep.sources.turns import DESCRIBE_VIDEO, question_turns
from data_prep.toy.words import save_tokenizer
from ma2mba.annotations import each, json_lines
from ma2mba.errors import UserError
from ma2mba.model.conversation import load_tokenizer
from ma2mba.shards.reader import ShardReader, find_damage
from tests.unit.video.numbered_video import write

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "examples/extending/captions_format.py"


@pytest.fixture
def recipe(tmp_path) -> Path:
    """A recipe of one video of 3 s, a line without a caption, and a line that is no JSON."""
    (tmp_path / "media").mkdir()
    write(tmp_path / "media/a.mp4", range(30), Fraction(1, 10))
    save_tokenizer(tmp_path / "tokenizer.json")
    lines = [json.dumps({"clip": "a.mp4", "caption": "a red star appears."}), json.dumps({"clip": "b.mp4"}), "{"]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    source = {"format": "captions", "annotations": "captions.jsonl", "media": "media"}
    content = {"stage": "captioning", "tokenizer": "tokenizer.json", "image_size": 32, "sources": [source]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "recipe.yaml"


@pytest.fixture
def own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_FORMATS", dict(registry._FORMATS))


def check(folder: Path) -> None:
    assert find_damage(folder) == []
    reader = ShardReader(folder)
    (row,) = reader.rows
    text = load_tokenizer(reader.tokenizer_path).decode(row.token_ids.tolist(), skip_special_tokens=False)
    assert "a red star appears." in text
    assert (row.sample_id, row.dataset, row.frames) == ("a.mp4", "captions", 3)
    (entry,) = reader.manifest.sources
    assert (entry.format, entry.samples) == ("captions", 1)
    rejects = [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]
    assert [(reject["where"], reject["media"]) for reject in rejects] == [
        ("captions.jsonl line 2", ""),
        ("captions.jsonl line 3", ""),
    ]
    assert rejects[0]["reason"] == "malformed record: has no caption"


def test_from_its_own_command_line(recipe, tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "build", recipe, "--out", tmp_path / "shards", "--workers", "1"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    check(tmp_path / "shards")


def test_from_python(recipe, tmp_path, own_registry):
    with pytest.raises(UserError, match="captions is not a known format"):
        load_recipe(recipe)
    runpy.run_path(str(SCRIPT))
    build(recipe, tmp_path / "shards", workers=1)
    check(tmp_path / "shards")
    (clip,) = [
        c for c in find_format("captions").read([("c", tmp_path / "captions.jsonl")], tmp_path) if type(c) is Clip
    ]
    assert clip.turns[0].text in DESCRIBE_VIDEO


def test_its_conversations_are_joined_by_video(recipe, tmp_path, own_registry):
    def read_question(record, folder, where):
        return Clip(where, folder.path("a.mp4"), "a.mp4", where, question_turns(record["q"], "four"))

    register("questions", each(json_lines, read_question), join="videos")
    (tmp_path / "captions.jsonl").write_text('{"q": "how many"}\n{"q": "which"}\n')
    recipe.write_text(recipe.read_text().replace("format: captions", "format: questions"))
    report, rejects = build(recipe, tmp_path / "shards", workers=1)
    assert (report["records"], report["samples"], rejects) == (2, 1, [])


def test_a_name_is_registered_once(own_registry):
    before = format_names()
    with pytest.raises(ValueError, match="a format named llava is already registered"):
        register("llava", find_format("llava").read)
    assert format_names() == before
