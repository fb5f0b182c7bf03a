"""A path in a recipe counts from the recipe's folder, a path on the command line from the current directory."""

import pytest
import yaml

from ma2mba.errors import UserError
from ma2mba.training.recipe.loading import load_recipe
from ma2mba.training.world import load_policy

HUB = "openai/clip-vit-large-patch14-336"
MODEL = {"language_model": {"d_model": 32, "n_layer": 2}, "vision": {}}


@pytest.fixture
def places(tmp_path, monkeypatch):
    """The folder of a recipe, and the current directory."""
    for name in ("recipes", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "recipes", tmp_path / "here"


def load(folder, *overrides, name="r.yaml", **values):
    recipe = {"stage": "stage1", "data": "shards", "run": "run", "init_from": "start", "model": MODEL}
    recipe |= {"trainable": {"projector": 1.0}, "global_batch": 1, "steps": 1}
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe | values))
    return load_recipe(folder / name, overrides)


def test_paths_of_a_file_count_from_its_folder(places):
    folder, _ = places
    data = ["a", {"path": "../b", "weight": 2}]
    recipe = load(folder, data=data, run="./run", resume="old", zero_config="mine.json")
    assert [source.path for source in recipe.sources] == [f"{folder}/a", f"{folder.parent}/b"]
    assert [source.weight for source in recipe.sources] == [1, 2]
    assert (recipe.run, recipe.init_from) == (f"{folder}/run", f"{folder}/start")
    assert (recipe.resume, recipe.zero_config) == (f"{folder}/old", f"{folder}/mine.json")
    assert load(folder, name="../recipes/r.yaml").run == f"{folder}/run"


def test_paths_of_overrides_count_from_the_current_directory(places):
    folder, here = places
    changes = (
        "data=[a, {path: ../b}]",
        "run=run",
        "init_from.language_model=lm",
        "resume=old",
        "zero_config=mine.json",
    )
    recipe = load(folder, *changes, init_from={"language_model": "x", "vision": "./clip"})
    assert [source.path for source in recipe.sources] == [f"{here}/a", f"{here.parent}/b"]
    assert recipe.run == f"{here}/run"
    assert vars(recipe.init_from) == {"language_model": f"{here}/lm", "vision": f"{folder}/clip"}
    assert (recipe.resume, recipe.zero_config) == (f"{here}/old", f"{here}/mine.json")


def test_absolute_paths_and_names_stay(places):
    folder, here = places
    vision = {"vision": HUB}
    recipe = load(folder, "run=/runs/a", data="/shards/a", init_from=vision, zero_config="zero3")
    assert (recipe.run, recipe.data, recipe.zero_config) == ("/runs/a", "/shards/a", "zero3")
    assert (recipe.init_from.vision, recipe.resume) == (HUB, "auto")
    assert load(folder, "resume=none", f"init_from={{vision: {HUB}}}").init_from.vision == HUB
    assert load(folder, "init_from=null").init_from is None
    (folder / HUB).mkdir(parents=True)
    assert load(folder, init_from=vision).init_from.vision == f"{folder}/{HUB}"
    (here / HUB).mkdir(parents=True)
    assert load(folder, f"init_from.vision={HUB}", init_from=vision).init_from.vision == f"{here}/{HUB}"


def test_a_saved_recipe_means_the_same_from_everywhere(places, monkeypatch):
    folder, here = places
    recipe = load(folder, "run=run", init_from={"vision": "./clip"}, zero_config="zero2")
    (here / "saved.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    monkeypatch.chdir(folder)
    assert load_recipe(here / "saved.yaml") == recipe


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3", "zero1_offload"])
def test_shipped_policies_have_names(places, name):
    folder, _ = places
    for given in (name, f"ds_configs/{name}.json"):
        assert load(folder, zero_config=given).zero_config == load(folder, f"zero_config={given}").zero_config == name
    assert load_policy(name).stage == int(name[4])


def test_a_policy_beside_the_recipe_comes_before_the_checkouts(places):
    folder, _ = places
    (folder / "ds_configs").mkdir()
    (folder / "ds_configs" / "zero1.json").write_text("{}")
    given = "ds_configs/zero1.json"
    assert load(folder, zero_config=given).zero_config == f"{folder}/{given}"


def test_a_path_that_exists_only_in_the_current_directory_is_explained(places):
    folder, here = places
    for name in ("shards", "run", "clip"):
        (here / name).mkdir()
    with pytest.raises(UserError) as refused:
        load(folder, data=["shards", {"path": "other"}], init_from={"vision": "clip"})
    first, *problems = str(refused.value).split("\n  ")
    assert first.endswith("r.yaml: 3 problems")
    rule = "A path in a recipe counts from the recipe's folder"
    assert problems == [
        f"data.0: {folder}/shards does not exist, but shards exists in the current directory. {rule}: "
        "write data.0: ../here/shards in the recipe, or 'data=[shards, ...]' on the command line",
        f"run: {folder}/run does not exist, but run exists in the current directory. {rule}: "
        f"write run: ../here/run in the recipe, or run=run on the command line. To start a new run, "
        f"create {folder}/run",
        f"init_from.vision: {folder}/clip does not exist, but clip exists in the current directory. {rule}: "
        "write init_from.vision: ../here/clip in the recipe, or init_from.vision=clip on the command line",
    ]
    recipe = load(folder, "data=shards", "run=run", "init_from=null", data=["shards"], init_from={"vision": "clip"})
    assert (recipe.data, recipe.run) == (f"{here}/shards", f"{here}/run")
    (folder / "run").mkdir()
    (folder / "shards").mkdir()
    assert load(folder, data="shards").run == f"{folder}/run"
