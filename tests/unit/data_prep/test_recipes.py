"""The shipped recipes, and the rules for the keys of a recipe."""

from pathlib import Path

import pytest
import yaml

import data_prep
from data_prep.recipe import Recipe, Source, load_recipe, resolve
from data_prep.sources import format_names
from ma2mba.errors import UserError

FOLDER = Path(data_prep.__file__).parent / "recipes"
FILES = sorted(FOLDER.glob("*.yaml"))
STAGES = {"stage1", "stage1_5", "stage2"}


def content(path):
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_a_shipped_recipe_is_valid_except_for_its_placeholders(path, tmp_path):
    recipe = Recipe.model_validate(content(path))
    with pytest.raises(UserError, match="names missing files") as caught:
        load_recipe(path)
    assert str(caught.value).count("/path/to/") == 1 + sum(1 + len(source.annotations) for source in recipe.sources)
    text = path.read_text().replace("/path/to", str(tmp_path))
    Path(yaml.safe_load(text)["tokenizer"]).parent.mkdir()
    Path(yaml.safe_load(text)["tokenizer"]).touch()
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
    assert sorted(single) == format_names()
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
    problem = "source 1 has the same name llava as an earlier source, but another format or weight"
    for second in (source(weight=3), source(name="llava", format="webvid")):
        with pytest.raises(ValueError, match=problem):
            recipe(source(weight=2), second)


@pytest.mark.parametrize(
    ("name", "meant"), [("nextq_mc", "Did you mean nextqa_mc"), ("", "not a known format. Known"), ("x", "Known")]
)
def test_an_unknown_format_is_answered_with_the_known_ones(name, meant, tmp_path):
    content = {"stage": "stage1", "tokenizer": "t.json", "sources": [source(format=name)]}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=rf"sources\.0\.format: {name} is not a known format") as caught:
        load_recipe(tmp_path / "r.yaml")
    assert meant in str(caught.value)
    assert f"Known formats: {', '.join(format_names())}" in str(caught.value)


def test_unknown_and_missing_keys_are_named(tmp_path):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"stages": "s", "tokenizer": "t", "sources": [source(medium=".")]}))
    with pytest.raises(UserError, match=r"the recipe has 3 faults") as caught:
        load_recipe(tmp_path / "r.yaml")
    lines = str(caught.value).splitlines()[1:]
    assert "  stage: missing. Give it a value" in lines
    assert "  sources.0.medium: unknown key. Known keys: format, name, annotations, dataset, media, weight" in lines
    assert any(line.startswith("  stages: unknown key. Known keys: stage, tokenizer, sources") for line in lines)


@pytest.mark.parametrize("stage", ["stage1", "stage3", "Warm_up_2"])
def test_a_stage_is_any_name(stage):
    assert Recipe.model_validate({"stage": stage, "tokenizer": "t", "sources": [source()]}).stage == stage


@pytest.mark.parametrize("stage", ["", "stage 1", "a-b", "stage1\n", "é", 1])
def test_a_stage_that_is_no_name(stage):
    with pytest.raises(ValueError, match="stage"):
        Recipe.model_validate({"stage": stage, "tokenizer": "t", "sources": [source()]})


def test_paths_count_from_the_folder_of_the_recipe(tmp_path, monkeypatch):
    (tmp_path / "mine/media").mkdir(parents=True)
    for name in ("t.json", "a.json", "b.json"):
        (tmp_path / "mine" / name).touch()
    content = {"stage": "s", "tokenizer": "t.json", "sources": [source(media="media", annotations=["a.json", "b*"])]}
    (tmp_path / "mine/r.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    load_recipe(Path("mine/r.yaml"))
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="relative paths count from the recipe's folder") as caught:
        load_recipe(Path("r.yaml"))
    assert str(caught.value).splitlines()[1:] == [
        f"  tokenizer: {tmp_path}/t.json: no such tokenizer file",
        f"  sources.0.media: {tmp_path}/media is not a folder",
        f"  sources.0.annotations.0: {tmp_path}/a.json is not a file",
        f"  sources.0.annotations.1: {tmp_path}/b* matches no file",
    ]


def test_a_pattern_means_all_matching_files(tmp_path):
    for name in ("b.json", "a.json", "c.txt", "t.json"):
        (tmp_path / name).write_text(name)
    pattern = recipe(source(annotations="[ab]*.json"))
    assert [name for name, _ in pattern.sources[0].files(tmp_path)] == ["a.json", "b.json"]
    listed = recipe(source(annotations=["a.json", "b.json"]))
    assert resolve(pattern, tmp_path, "") == resolve(listed, tmp_path, "")
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe(source(annotations="x*.json")).model_dump()))
    with pytest.raises(UserError, match=r"x\*\.json matches no file"):
        load_recipe(tmp_path / "r.yaml")


def test_a_file_that_two_patterns_match_is_read_once(tmp_path):
    for name in ("a.json", "b.json"):
        (tmp_path / name).touch()
    source = Source(format="llava", name="x", annotations=["b.json", "*.json", "./a.json"], media=".")
    assert source.files(tmp_path) == [("b.json", tmp_path / "b.json"), ("a.json", tmp_path / "a.json")]
