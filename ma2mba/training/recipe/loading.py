"""Read a training recipe: YAML, overridden by `key=value`, checked as a whole before training touches anything.

`load_recipe` looks for the files that the recipe names, to make their paths absolute. `parse_recipe` only validates:
it needs no disk, no network and no process group. Both report every problem at once.
"""

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from ma2mba.errors import UserError
from ma2mba.shipped import recipe_names, recipe_text
from ma2mba.training.recipe.paths import Key, make_absolute
from ma2mba.training.recipe.rules import conflicts
from ma2mba.training.recipe.schema import Recipe


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `key=value` overrides (`trainable.vision=4e-6`); values are YAML.

    `path` is a YAML file, or the name of a recipe that comes with the package. Paths become absolute: a path in the
    file counts from the file's folder; a path in an override, or in a recipe given by name, from the current directory.
    Raise UserError with every key that is unknown, missing, of a wrong type or incompatible with another.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(_read(path))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}). Give the path of a recipe, or a name: "
            f"{', '.join(recipe_names())}"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML ({error}). Compare it with a recipe that `ma2mba recipes` lists") from error
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: holds {type(values).__name__} instead of keys and values. "
            "Compare it with a recipe that `ma2mba recipes` lists"
        )
    misplaced = make_absolute(values, path.parent)
    for override in overrides:
        key = _override(values, override)
        misplaced = {other: text for other, text in misplaced.items() if not _overlap(key, other)}
    return parse_recipe(values, str(path), misplaced.values())


def _read(path: Path) -> str:
    """Return the text of a file or, if no such file exists, of the shipped recipe with this name."""
    name = str(path)
    return recipe_text(name) if name in recipe_names() and not path.exists() else path.read_text(encoding="utf-8")


def parse_recipe(values: dict[str, Any], name: str = "recipe", found: Iterable[str] = ()) -> Recipe:
    """Validate the keys and values of a recipe. Raise UserError with a line for each problem, `found` included."""
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
        raise UserError("\n  ".join([f"{name}: {len(problems)} problem{'s' * (len(problems) > 1)}", *problems]))
    return recipe


_STAND_IN: dict[str, Any] = {
    "stage": "stage1",
    "data": "data",
    "run": "run",
    "init_from": None,
    "trainable": {"projector": 1.0},
    "global_batch": 1,
}


def _override(values: dict[str, Any], text: str) -> Key:
    """Apply one `key=value` to `values`. Return the key."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip("."):
        raise UserError(f"{text}: not an override. Write key=value, as in trainable.vision=4e-6")
    *sections, key = path.split(".")
    try:
        change = {key: yaml.safe_load(value)}
    except yaml.YAMLError as error:
        raise UserError(f"{text}: the value is not YAML ({error}). Quote it") from error
    for section in reversed(sections):
        change = {section: change}
    make_absolute(change, Path.cwd())
    for section in sections:
        change = change[section]
        if not isinstance(values.get(section), dict):
            values[section] = {}
        values = values[section]
    values.update(change)
    return (*sections, key)


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
    loc = [str(key) for key in error["loc"] if key not in forms]
    path, message = ".".join(loc), str(error["msg"])
    if error["type"] == "extra_forbidden":
        return f"{path}: unknown key{_suggestion(loc)}"
    if error["type"] == "missing":
        return f"{path}: missing. Give it a value"
    return f"{path}: {error['input']!r} is wrong: {message[0].lower()}{message[1:]}"


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
