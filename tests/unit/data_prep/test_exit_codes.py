"""A file that cannot be read or written is reported with its name and a remedy (exit code 2), without a traceback."""

import errno
import os
from pathlib import Path

import pytest
from test_bad_records import record, write_recipe
from typer.testing import CliRunner

from data_prep.recipe import Recipe, resolve
from data_prep.sources import find_format, format_names
from ma2mba.cli.data import app
from ma2mba.errors import UserError
from ma2mba.files import writing

TOY = ["toy", "--videos", "1", "--short", "0", "--stills", "0", "--clips", "0", "--held-out", "0"]
UNREADABLE = Path("/proc/self/mem")
"""A file whose reading fails, as on a bad disk."""


@pytest.mark.parametrize("name", ["file/shards", "x" * 300])
@pytest.mark.parametrize("command", [["build", "recipe.yaml"], TOY, ["toy-eval", "--videos", "1", "--seconds", "2:2"]])
def test_an_output_folder_that_cannot_be_created(command, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    write_recipe(tmp_path, [record("gone.png")])
    with pytest.raises(UserError, match=r"cannot be written \(.*name another --out"):
        CliRunner().invoke(app, [*command, "--out", name, "--workers", "1"], catch_exceptions=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "r.json", "recipe.yaml", "tokenizer.json"]


def test_a_full_disk_is_named():
    with pytest.raises(UserError, match="No space left on device: 'index'"), writing(Path("shards")):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "index")


@pytest.mark.parametrize("form", format_names())
def test_an_annotation_file_that_cannot_be_read(form, tmp_path):
    names = ["a_q.json", "a_a.json"] if form == "activitynet_qa" else ["a.json"] if "next" not in form else ["a.csv"]
    for name in names:
        (tmp_path / name).symlink_to(UNREADABLE)
    with pytest.raises(UserError, match=r"a[_qa]*\.(json|csv): "):
        list(find_format(form).read([(name, tmp_path / name) for name in names], tmp_path))
    source = {"format": form, "annotations": names, "media": "."}
    recipe = Recipe.model_validate({"stage": "stage2", "tokenizer": "t.json", "sources": [source]})
    with pytest.raises(UserError, match=r"a[_qa]*\.(json|csv): cannot be read \(Input/output error\)"):
        resolve(recipe, tmp_path, "")


def test_a_map_of_videos_that_cannot_be_read(tmp_path):
    (tmp_path / "map.json").symlink_to(UNREADABLE)
    with pytest.raises(UserError, match=r"map\.json: cannot be read"):
        list(find_format("nextqa_mc").read([("map.json", tmp_path / "map.json")], tmp_path))


@pytest.mark.parametrize("header", ['videoid,"contentUrl"x,duration,page_dir,name\n', 'videoid,"name'])
def test_a_first_line_that_is_badly_quoted(header, tmp_path):
    (tmp_path / "w.csv").write_text(header)
    with pytest.raises(UserError, match=r"w\.csv: the first line names no columns: not CSV"):
        list(find_format("webvid").read([("w.csv", tmp_path / "w.csv")], tmp_path))
