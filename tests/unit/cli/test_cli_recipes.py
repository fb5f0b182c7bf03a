"""Recipes that come with the package: listed, copied, and named instead of a path."""

import json

import pytest
import yaml

from ma2mba.errors import UserError
from ma2mba.shipped import RECIPES, policy_names, recipe_names, recipe_text
from ma2mba.training.recipe.loading import load_recipe


def test_the_list_names_recipes_and_policies(ma2mba):
    code, said, _ = ma2mba("recipes")
    assert code == 0
    for name in (*recipe_names(), "data/stage1", "data/llava_video_178k", *policy_names()):
        assert name in said
    listed = json.loads(ma2mba("recipes", "--json")[1])
    assert listed["recipes"]["data/webvid"] == "WebVid-2.5M: short videos and captions"
    assert listed["zero_policies"] == ["zero1", "zero1_offload", "zero2", "zero3"]


@pytest.mark.parametrize("name", recipe_names())
def test_a_copy_differs_in_its_paths_alone(ma2mba, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert ma2mba("recipes", "copy", name, "sub/my.yaml")[0] == 0
    copied = load_recipe("sub/my.yaml")
    assert copied.run == str(tmp_path / "sub" / "runs" / name)
    original = load_recipe(RECIPES / f"{name}.yaml")
    paths = {"data", "run", "init_from"}
    assert copied.model_dump(exclude=paths) == original.model_dump(exclude=paths)
    assert "../" not in recipe_text(name)


def test_a_named_recipe_counts_from_the_current_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_recipe("stage2").data == str(tmp_path / "shards/stage2")
    (tmp_path / "stage2").write_text(yaml.safe_dump({"stage": "other"}))
    with pytest.raises(UserError, match=r"stage2: .*problems"):
        load_recipe("stage2")  # a file of that name comes first


def test_a_recipe_for_data_is_copied_as_it_is(ma2mba, tmp_path):
    copy = tmp_path / "webvid.yaml"
    assert ma2mba("recipes", "copy", "data/webvid", copy)[0] == 0
    assert yaml.safe_load(copy.read_text())["sources"][0]["format"] == "webvid"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("stage9", "new.yaml"), "stage9: no recipe has this name"), (("stage1", "old.yaml"), "old.yaml: already exists")],
)
def test_a_copy_is_refused(ma2mba, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.yaml").write_text("mine")
    code, _, error = ma2mba("recipes", "copy", *arguments)
    assert code == 2
    assert message in error
    assert (tmp_path / "old.yaml").read_text() == "mine"
    assert not (tmp_path / "new.yaml").exists()
