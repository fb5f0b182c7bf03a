"""The recipes that come with the program, and what a source may say."""

from pathlib import Path
from typing import get_args

import pytest
import yaml

import data_prep
from data_prep.recipe import Format, Recipe, Source, load_recipe, resolve
from data_prep.sources import READERS
from ma2mba.errors import UserError

FOLDER = Path(data_prep.__file__).parent / "recipes"
FILES = sorted(FOLDER.glob("*.yaml"))
STAGES = {"stage1", "stage1_5", "stage2"}


def content(path):
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_a_recipe_is_right_but_for_its_placeholders(path, tmp_path):
    recipe = Recipe.model_validate(content(path))
    with pytest.raises(UserError, match="names what is not there") as caught:
        load_recipe(path)
    assert str(caught.value).count("/path/to/") == sum(1 + len(source.annotations) for source in recipe.sources)
    text = path.read_text().replace("/path/to", str(tmp_path))
    for source in yaml.safe_load(text)["sources"]:
        Path(source["media"]).mkdir(parents=True, exist_ok=True)
        for name in source["annotations"]:
            file = Path(name.replace("*", "part"))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    (tmp_path / "mine.yaml").write_text(text)
    loaded = load_recipe(tmp_path / "mine.yaml")
    assert [source.format for source in loaded.sources] == [source.format for source in recipe.sources]


def test_every_format_and_every_stage_has_a_recipe():
    recipes = {path.stem: Recipe.model_validate(content(path)) for path in FILES}
    single = [recipe.sources[0].format for name, recipe in recipes.items() if name not in STAGES]
    assert sorted(single) == sorted(get_args(Format)) == sorted(READERS)
    assert recipes.keys() >= STAGES
    for stage in STAGES:
        assert recipes[stage].stage == stage
        for source in recipes[stage].sources:
            own = recipes[source.name].sources[0]
            assert (own.format, own.annotations, own.media) == (source.format, source.annotations, source.media)


def source(**changes):
    return {"format": "llava", "annotations": "a.json", "media": "."} | changes


def recipe(*sources):
    return Recipe.model_validate({"stage": "stage1", "tokenizer": "t.json", "sources": list(sources)})


def test_weight_and_name_have_defaults():
    (one,) = recipe(source()).sources
    assert (one.name, one.weight) == ("llava", 1.0)


@pytest.mark.parametrize("weight", [0, -1, float("inf"), float("nan"), "much"])
def test_a_weight_is_a_positive_number(weight):
    with pytest.raises(ValueError, match=r"sources\.0\.weight"):
        recipe(source(weight=weight))


def test_a_name_means_one_format_and_weight():
    recipe(source(weight=2), source(weight=2), source(name="other"))
    for second in (source(weight=3), source(name="llava", format="webvid")):
        with pytest.raises(ValueError, match="source 1 is named llava like one of another format or weight"):
            recipe(source(weight=2), second)


def test_a_pattern_is_all_files_that_fit(tmp_path):
    for name in ("b.json", "a.json", "c.txt", "t.json"):
        (tmp_path / name).write_text(name)
    pattern = recipe(source(annotations="[ab]*.json"))
    assert [name for name, _ in pattern.sources[0].files(tmp_path)] == ["a.json", "b.json"]
    listed = recipe(source(annotations=["a.json", "b.json"]))
    assert resolve(pattern, tmp_path, "") == resolve(listed, tmp_path, "")
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe(source(annotations="x*.json")).model_dump()))
    with pytest.raises(UserError, match=r"x\*\.json fits no file"):
        load_recipe(tmp_path / "r.yaml")


def test_a_file_that_two_patterns_fit_is_read_once(tmp_path):
    for name in ("a.json", "b.json"):
        (tmp_path / name).touch()
    source = Source(format="llava", name="x", annotations=["b.json", "*.json", "./a.json"], media=".")
    assert source.files(tmp_path) == [("b.json", tmp_path / "b.json"), ("a.json", tmp_path / "a.json")]
