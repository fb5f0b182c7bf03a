"""`ma2mba recipes`: list the recipes that come with the package, and copy one."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

import data_prep
from ma2mba.cli.output import Json, out, print_json, print_line
from ma2mba.errors import UserError
from ma2mba.files import atomic_write
from ma2mba.shipped import policy_names, recipe_names, recipe_text

DATA_RECIPES = Path(data_prep.__file__).parent / "recipes"
DATA = "data/"
"""How the name of a recipe for data preparation begins."""

app = typer.Typer(help="List the recipes that come with the package, and copy one.")


@app.callback(invoke_without_command=True)
def list_recipes(context: typer.Context, as_json: Json = False) -> None:
    if context.invoked_subcommand:
        return
    found = {name: _text(name) for name in _names()}
    purposes = {name: _purpose(text) for name, text in found.items()}
    if as_json:
        print_json({"recipes": purposes, "zero_policies": policy_names()})
        return
    table = Table("recipe", "purpose")
    for name, purpose in purposes.items():
        table.add_row(name, purpose)
    out.print(table)
    out.print(f"ZeRO policies, for the key zero_config: {', '.join(policy_names())}")
    out.print("Copy a recipe: ma2mba recipes copy stage2 my.yaml")


@app.command("copy")
def copy_recipe(
    name: Annotated[str, typer.Argument(help="A name that `ma2mba recipes` lists.")],
    file: Annotated[Path, typer.Argument(help="The YAML file to write.")],
) -> None:
    """Copy a recipe to a file of your own. Paths in the copy count from its folder."""
    if name not in _names():
        raise UserError(f"{name}: no recipe has this name. Use one of: {', '.join(_names())}")
    if file.exists():
        raise UserError(f"{file}: already exists. Name a new file, or remove this one")
    with atomic_write(file) as target:
        target.write(_text(name))
    print_line(f"{file}: copy of {name}")


def _purpose(text: str) -> str:
    """Return the first sentence of a recipe's first comment."""
    return text.splitlines()[0].removeprefix("# ").split(". ")[0].removesuffix(".")


def _names() -> list[str]:
    return [*recipe_names(), *sorted(f"{DATA}{path.stem}" for path in DATA_RECIPES.glob("*.yaml"))]


def _text(name: str) -> str:
    if name.startswith(DATA):
        return (DATA_RECIPES / f"{name.removeprefix(DATA)}.yaml").read_text(encoding="utf-8")
    return recipe_text(name)
