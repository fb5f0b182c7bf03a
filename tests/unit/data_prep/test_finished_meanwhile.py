"""Array tasks that end together: a late task finds a finished folder without a work folder."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_bad_records import picture_build, record

from data_prep import build as building
from data_prep import workfolder
from data_prep.running import Share
from data_prep.workfolder import Busy, check_folder, claim
from ma2mba.errors import UserError
from ma2mba.shards.manifest import read_manifest


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """A recipe of two pictures, with its finished shards in `shards` next to it."""
    folder = tmp_path_factory.mktemp("pictures")
    for name in ("a.png", "b.png"):
        Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(folder / name)
    picture_build(folder, [record("a.png"), record("b.png")])
    return folder / "recipe.yaml"


@pytest.fixture
def whole(recipe, tmp_path) -> Path:
    return Path(shutil.copytree(recipe.parent / "shards", tmp_path / "s"))


@pytest.mark.parametrize("options", [{"share": Share(0, 2)}, {"merge": True}])
def test_finished_by_another_before_the_missing_shards_are_counted(options, recipe, tmp_path, monkeypatch):
    out = tmp_path / "s"
    (out / ".build").mkdir(parents=True)

    def finished_by_another(*_, **__):
        shutil.copytree(recipe.parent / "shards", out, dirs_exist_ok=True)
        shutil.rmtree(out / ".build")

    monkeypatch.setattr(building, "_finish_if_complete", finished_by_another)
    report, _ = building.build(recipe, out, workers=1, **options)
    assert (report["already_built"], report["samples"]) == (True, 2)


def test_finished_by_another_between_two_looks(whole, monkeypatch):
    """At the first look the manifest does not exist yet; at the second, the work folder is gone."""
    exists, looks = Path.exists, []

    def look(path):
        looks.append(path) if path.name == "manifest.json" else None
        return exists(path) and len(looks) != 1

    monkeypatch.setattr(Path, "exists", look)
    assert check_folder(whole, read_manifest(whole).recipe)


def test_a_lock_that_was_removed_with_its_folder_holds_nothing(tmp_path, monkeypatch):
    lock, removed = workfolder._lock, []

    def removed_first(*arguments):
        if not removed:
            removed.append(shutil.rmtree(tmp_path / ".build"))
        lock(*arguments)

    monkeypatch.setattr(workfolder, "_lock", removed_first)
    with claim(tmp_path, {}), pytest.raises(Busy):
        claim(tmp_path, {}).__enter__()


def test_a_work_folder_that_is_removed_before_it_is_locked(tmp_path, monkeypatch):
    mkdir, made = Path.mkdir, []

    def removed_at_once(path, *args, **options):
        mkdir(path, *args, **options)
        if path.name == ".build" and not made:
            made.append(os.rmdir(path))

    monkeypatch.setattr(Path, "mkdir", removed_at_once)
    with claim(tmp_path / "s", {}):
        assert (tmp_path / "s/.build/lock").exists()


def test_a_file_in_place_of_the_work_folder_is_an_error(tmp_path):
    (tmp_path / ".build").touch()
    with pytest.raises(FileExistsError):
        claim(tmp_path, {}).__enter__()


def test_merging_where_nothing_was_built_makes_no_folder(recipe, tmp_path):
    with pytest.raises(UserError, match="no shard was built here"):
        building.build(recipe, tmp_path / "mistyped", workers=1, merge=True)
    assert not (tmp_path / "mistyped").exists()
