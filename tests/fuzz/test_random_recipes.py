"""A recipe with random values is read, or rejected by a UserError that names the file."""

import copy
from pathlib import Path

import yaml

from ma2mba.errors import UserError
from ma2mba.training.recipe.loading import load_recipe

RECIPES = sorted((Path(__file__).parents[2] / "launch/recipes").glob("*.yaml"))
JUNK = [None, True, -1, 0, 10**30, 1e308, float("nan"), float("inf"), "", "x", "é\n", [], [[]], {}, {"x": {"y": 1}}]


def places(value, found: list) -> list:
    """Return (container, key) of every value within a recipe."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        found.append((value, key))
        if isinstance(inner, dict | list):
            places(inner, found)
    return found


def test_a_recipe_is_read_or_rejected_by_name(rounds, tmp_path):
    path = tmp_path / "recipe.yaml"
    for rng in rounds:
        recipe = yaml.safe_load(rng.choice(RECIPES).read_text())
        for _ in range(rng.randint(1, 3)):
            container, key = rng.choice(places(recipe, []))
            if rng.random() < 0.2 and isinstance(container, dict):
                container[rng.choice(["x", "", 3, None])] = container.pop(key)
            else:
                container[key] = copy.deepcopy(rng.choice(JUNK))  # a later value may go into this one
        path.write_text(yaml.safe_dump(recipe, allow_unicode=True))
        print(path.read_text())
        said = ""
        try:
            load_recipe(path, [])
        except UserError as error:
            said = str(error)
        assert not said or str(path) in said
