"""Training recipes and ZeRO policies that come with the package, known by name.

A checkout has them in launch/recipes and ds_configs. setup.py installs the same files beside this module.
"""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
CHECKOUT = PACKAGE.parent


def _folder(installed: str, in_checkout: str) -> Path:
    return PACKAGE / installed if (PACKAGE / installed).is_dir() else CHECKOUT / in_checkout


RECIPES = _folder("recipes", "launch/recipes")
POLICIES = _folder("policies", "ds_configs")
TO_CHECKOUT = "../../"
"""How a path in launch/recipes begins: it leads from there to the checkout."""


def policy_names() -> list[str]:
    """Return the names that `zero_config` takes in place of a path."""
    return sorted(path.stem for path in POLICIES.glob("*.json"))


def recipe_names() -> list[str]:
    """Return the names that `ma2mba train` takes in place of a recipe's path."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe_text(name: str) -> str:
    """Return the text of a training recipe whose paths count from the folder that the text is written to."""
    return (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").replace(TO_CHECKOUT, "")
