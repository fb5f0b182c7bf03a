"""Read a training recipe: YAML, overridden by `key=value`, checked as a whole before training touches anything.

`load_recipe` looks for the files that the recipe names, to make their paths absolute. `parse_recipe` only validates:
it needs no disk, no network and no process group. Both report every problem at once.
"""

import difflib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from ma2mba.errors import UserError
from ma2mba.shipped import recipe_names, recipe_text
from ma2mba.text import brief, listing, parse_yaml, read_yaml, shorten
from ma2mba.training.recipe.paths import Key, make_absolute
from ma2mba.training.recipe.rules import conflicts
from ma2mba.training.recipe.schema import Recipe

DEEPEST = 20
"""Most sections of an override's key: more than any key of a recipe has."""


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `key=value` overrides (`trainable.vision=4e-6`); values are YAML.

    `path` is a YAML file, or the name of a recipe that comes with the package. Paths become absolute: a path in the
    file counts from the file's folder; a path in an override, or in a recipe given by name, from the current directory.
    Raise UserError with every key that is unknown, missing, of a wrong type or incompatible with another.
    """
    path = Path(path)
    values = _read(path)
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: holds {type(values).__name__} instead of keys and values. "
            "Compare it with a recipe that `ma2mba recipes` lists"
        )
    misplaced = make_absolute(values, path.parent)
    for override in overrides:
        key, wrong = _override(values, override)
        misplaced = {other: text for other, text in misplaced.items() if not _overlap(key, other)} | wrong
    return parse_recipe(values, str(path), misplaced.values())


def _read(path: Path) -> Any:
    """Return the content of a file or, if no such file exists, of the shipped recipe with this name."""
    name = str(path)
    if os.path.lexists(path):
        return read_yaml(path)
    if name in recipe_names():
        return parse_yaml(recipe_text(name))
    raise UserError(
        f"{path}: cannot be read (No such file or directory). Give the path of a recipe, or a name: "
        f"{', '.join(recipe_names())}"
    )


def parse_recipe(values: dict[str, Any], name: str = "recipe", found: Iterable[str] = ()) -> Recipe:
    """Validate the keys and values of a recipe. Raise UserError that lists each problem, `found` included."""
    try:
        recipe = Recipe.model_validate(values)
        problems = [text for _, text in conflicts(recipe)]
    except ValidationError as error:
        recipe, problems = None, _describe(error, values)
        wrong = {str(e["loc"][0]) for e in error.errors()}
        sound = {key: value for key, value in values.items() if key in Recipe.model_fields and key not in wrong}
        stand_in = Recipe.model_validate(_STAND_IN | sound)
        problems += [text for keys, text in conflicts(stand_in) if not wrong & set(keys)]
    problems += found
    if problems or recipe is None:
        raise UserError(listing(name, f"{len(problems):,} problems", problems))
    return recipe


_STAND_IN: dict[str, Any] = {
    "stage": "stage1",
    "data": "data",
    "run": "run",
    "init_from": None,
    "trainable": {"projector": 1.0},
    "global_batch": 1,
}


def _override(values: dict[str, Any], text: str) -> tuple[Key, dict[Key, str]]:
    """Apply one `key=value` to `values`. Return the key, and a message for each text that cannot be a path."""
    path, equals, value = text.partition("=")
    *sections, key = path.split(".")
    if not equals or not path.strip(".") or len(sections) > DEEPEST:
        raise UserError(f"{shorten(text)}: not an override. Write key=value, as in trainable.vision=4e-6")
    try:
        change = {key: parse_yaml(value)}
    except ValueError as error:
        raise UserError(f"{shorten(text)}: the value is not YAML ({error}). Quote it") from error
    for section in reversed(sections):
        change = {section: change}
    problems = make_absolute(change, Path.cwd())
    for section in sections:
        change = change[section]
        if not isinstance(values.get(section), dict):
            values[section] = {}
        values = values[section]
    values.update(change)
    return (*sections, key), problems


def _overlap(one: Key, other: Key) -> bool:
    """Return True when one of two keys is the other, or lies in the other."""
    return all(a == b for a, b in zip(one, other, strict=False))


def _describe(error: ValidationError, values: dict[str, Any]) -> list[str]:
    return [_problem(e) for e in error.errors() if _is_meant(e["loc"], values)]


def _is_meant(loc: Sequence[int | str], values: dict[str, Any]) -> bool:
    """Return True unless the error belongs to a form of the value that the user did not write.

    A key may take several forms, for example a name or a section, and pydantic reports errors of each form.
    """
    key = str(loc[0])
    if key not in ("data", "init_from", "magc") or len(loc) == 1:
        return True
    if key == "magc":
        return (loc[1] == "Magc") == isinstance(values[key], dict)
    if key == "data" and isinstance(values[key], list):
        form = "Weighted" if len(loc) > 3 and isinstance(values[key][int(loc[2])], dict) else "str"
        return str(loc[1]).startswith("list[") and (len(loc) < 4 or loc[3] == form)
    if key == "init_from" and isinstance(values[key], dict):
        return loc[1] == "Pretrained"
    return loc[1] == "str"


def _problem(error: Any) -> str:
    forms = ("str", "list[union[str,Weighted]]", "Weighted", "Pretrained", "Magc", "literal['auto']")
    loc = [shorten(str(key)) for key in error["loc"] if key not in forms]
    path, message = ".".join(loc), str(error["msg"])
    if error["type"] == "extra_forbidden":
        return f"{path}: unknown key{_suggestion(loc)}"
    if error["type"] == "missing":
        return f"{path}: missing. Give it a value"
    return f"{path}: {brief(error['input'])} is wrong: {message[0].lower()}{message[1:]}"


def _suggestion(loc: Sequence[str]) -> str:
    fields = _fields(loc[:-1])
    if loc[-1] in ("lr", "learning_rate"):
        return ". Set learning rates under trainable, one for each component"
    near = difflib.get_close_matches(loc[-1], fields, 1)
    return f". Did you mean {near[0]}?" if near else f". Use one of: {', '.join(fields)}"


def _fields(loc: Sequence[str]) -> list[str]:
    section: type[BaseModel] = Recipe
    for key in loc:
        if not key.isdigit():
            options = _forms(section.model_fields[key].annotation)
            section = next(option for option in options if isinstance(option, type) and issubclass(option, BaseModel))
    return list(section.model_fields)


def _forms(annotation: Any) -> list[Any]:
    """Return a type and, for unions and lists, every type inside."""
    return [annotation, *(form for inner in getattr(annotation, "__args__", ()) for form in _forms(inner))]
