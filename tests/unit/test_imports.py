"""Imports point down and never in a circle: computed from the source of every file (docs/architecture.md).

Imports inside functions and under TYPE_CHECKING count like any other import.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOPS = ("ma2mba", "data_prep", "launch", "examples", "benchmarks", "tests")

FLOORS: tuple[tuple[str, ...], ...] = (
    (
        "ma2mba.errors",
        "ma2mba.files",
        "ma2mba.text",
        "ma2mba.strings",
        "ma2mba.exclude",
        "ma2mba.hub",
        "ma2mba.hub_upload",
        "ma2mba.limits",
        "ma2mba.terminal",
        "ma2mba.memory",
        "ma2mba.progress",
        "ma2mba.plots",
        "ma2mba.shipped",
        "ma2mba.stage",
    ),
    ("ma2mba.magc",),
    ("ma2mba.ops", "ma2mba.shards"),
    ("ma2mba.model", "ma2mba.video", "ma2mba.annotations"),
    ("ma2mba.planner", "ma2mba.data"),
    ("ma2mba.training", "ma2mba.adapters"),
    ("ma2mba.inference",),
    ("data_prep", "ma2mba.evaluation", "ma2mba.serving"),
    ("ma2mba.cli", "ma2mba.__main__", "data_prep.__main__"),
    ("launch", "examples", "benchmarks", "tests"),
)
"""From the bottom up. A room imports only rooms of floors below it, and of its own floor where no circle follows."""

ONE_DOOR = {
    "deepspeed": ("ma2mba/training/engine.py",),
    "av": ("ma2mba/video/",),
    "decord": ("ma2mba/video/decord_reader.py",),
    "pyarrow": ("ma2mba/shards/",),
    "transformers": ("ma2mba/model/hf/code/",),
    "mamba_ssm": ("ma2mba/ops/", "ma2mba/model/hf/code/"),
    "causal_conv1d": ("ma2mba/ops/", "ma2mba/model/hf/code/"),
    "ray": ("data_prep/ray_executor.py", "ma2mba/serving/ray_app.py"),
    "datasets": ("ma2mba/annotations/huggingface.py",),
    "huggingface_hub": ("ma2mba/hub.py", "ma2mba/hub_upload.py", "ma2mba/annotations/huggingface.py"),
    "matplotlib": ("ma2mba/plots.py",),
    "lmms_eval": ("ma2mba/evaluation/lmms_eval/",),
    "fastapi": ("ma2mba/serving/",),
    "starlette": ("ma2mba/serving/",),
    "uvicorn": ("ma2mba/serving/",),
    "gradio": ("ma2mba/serving/page/",),
    "httpcore": ("ma2mba/serving/remote.py",),
    "prometheus_client": ("ma2mba/serving/",),
}
"""A heavy dependency -> the only files, or folders, that may import it."""

MAGC_MAY_IMPORT = {"torch", "ma2mba", *sys.stdlib_module_names}
LAZY_DOOR = ("ma2mba/magc/__init__.py", "__getattr__", "ma2mba.adapters.attach")
"""The one import that points up: `from ma2mba.magc import attach` finds it in the adapters when asked."""
LAZY_DOORS = (LAZY_DOOR, ("ma2mba/__init__.py", "__getattr__", "ma2mba.inference.chat"))
"""The imports that make no circle, because they happen when somebody asks for `attach` or `ma2mba.VideoChat`."""


@dataclass(frozen=True)
class Import:
    """An import: the file and line, the absolute module, and the function around it ("" at the top of a file)."""

    file: str
    line: int
    module: str
    function: str = ""

    @property
    def importer(self) -> str:
        return module_of(self.file)


def test_the_code_keeps_the_rules():
    assert problems(ROOT) == []


def test_every_lazy_door_is_needed():
    assert {(i.file, i.function, i.module) for i in all_imports(ROOT)} >= {*LAZY_DOORS}


def test_the_lazy_attach_is_the_only_exception_and_is_needed():
    upward = [i for i in all_imports(ROOT) if i.importer.startswith("ma2mba.") and points_up(i)]
    assert [(i.file, i.function, i.module) for i in upward] == [LAZY_DOOR]


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"model/a.py": "import ma2mba.model.b", "model/b.py": "from ma2mba.model import a"}, "circle of files"),
        (
            {
                "model/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ma2mba.model.b import B",
                "model/b.py": "def f():\n    from ma2mba.model.a import A",
            },
            "circle of files: ma2mba/model/a.py -> ma2mba/model/b.py -> ma2mba/model/a.py",
        ),
        (
            {
                "video/a.py": "import ma2mba.annotations.b",
                "annotations/b.py": "",
                "annotations/c.py": "from ma2mba.video import d",
                "video/d.py": "",
            },
            "circle in ma2mba: ma2mba/annotations",
        ),
        (
            {
                "training/fit/a.py": "import ma2mba.training.job",
                "training/job.py": "from ma2mba.training.fit import b",
                "training/fit/b.py": "",
            },
            "circle in ma2mba/training: ma2mba/training/fit",
        ),
        ({"magc/x.py": "from ma2mba.adapters.attach import attach"}, "ma2mba.adapters is above ma2mba.magc"),
        ({"model/x.py": "from ma2mba.training import loop"}, "ma2mba.training is above"),
        ({"data/x.py": "from ma2mba import inference", "inference/chat.py": ""}, "ma2mba.inference is above"),
        ({"errors.py": "import ma2mba.magc"}, "ma2mba.magc is above"),
        ({"evaluation/x.py": "from data_prep.clips import Clip"}, "only ma2mba.cli may import data_prep"),
        ({"surprise/x.py": "import json"}, "stands on no floor"),
        ({"magc/x.py": "def f():\n    import numpy"}, "magc imports torch and the standard library alone"),
        ({"magc/x.py": "from ..errors import UserError"}, "magc imports torch and the standard library alone"),
        ({"magc/x.py": "import_module('ma2mba.adapters')"}, "names the module ma2mba.adapters"),
        ({"model/x.py": "from importlib import import_module"}, "importlib hides an import"),
        ({"data/x.py": "import pyarrow.parquet as pq"}, "pyarrow is imported only in"),
        ({"model/pretrained.py": "import transformers"}, "transformers is imported only in"),
        ({"training/loop.py": "def f():\n    import deepspeed.comm"}, "deepspeed is imported only in"),
        ({"video/decode.py": "import decord"}, "decord is imported only in"),
    ],
)
def test_a_planted_import_is_found(tmp_path, files, problem):
    for name, source in files.items():
        for folder in (tmp_path / "ma2mba" / name).parents:
            if folder.is_relative_to(tmp_path / "ma2mba"):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "__init__.py").touch()
        (tmp_path / "ma2mba" / name).write_text(source)
    found = problems(tmp_path)
    assert len(found) == 1, found
    assert problem in found[0]


def problems(root: Path) -> list[str]:
    """Every broken rule below `root`, one line each."""
    imports = list(all_imports(root))
    found = [problem for i in imports for problem in judge(i)]
    found += [f"{path}:{line}: names the module {name}" for path, line, name in names_in_strings(root)]
    return found + list(circles(root, imports))


def judge(i: Import) -> Iterator[str]:
    """The rules that one import breaks by itself."""
    where, top = f"{i.file}:{i.line}", i.module.split(".")[0]
    for dependency, places in ONE_DOOR.items():
        if top == dependency and not i.file.startswith((*places, "tests/", "benchmarks/")):
            yield f"{where}: {dependency} is imported only in {', '.join(places)}"
    if i.module == "importlib" and i.file.startswith(("ma2mba/", "data_prep/")):
        yield f"{where}: importlib hides an import from these rules; import the module itself"
    in_magc = i.importer.startswith("ma2mba.magc")
    if in_magc and (top not in MAGC_MAY_IMPORT or i.module.startswith(("ma2mba.errors", "ma2mba.files"))):
        yield f"{where}: magc imports torch and the standard library alone, not {i.module}"
    if floor(i.importer) is None and i.importer != "ma2mba":
        yield f"{where}: {i.importer} stands on no floor; add its room to FLOORS"
    elif (
        i.module.startswith("data_prep")
        and i.importer.startswith("ma2mba.")
        and not i.importer.startswith("ma2mba.cli")
    ):
        yield f"{where}: only ma2mba.cli may import data_prep"
    elif points_up(i) and (i.file, i.function, i.module) != LAZY_DOOR:
        yield f"{where}: {room(i.module)} is above {room(i.importer)}"


def points_up(i: Import) -> bool:
    here, there = floor(i.importer), floor(i.module)
    return here is not None and there is not None and there > here


def floor(module: str) -> int | None:
    """The number of a module's floor, None for a module of another project."""
    found = room(module)
    return next((n for n, rooms in enumerate(FLOORS) if found in rooms), None)


def room(module: str) -> str:
    """The room that a module belongs to: `ma2mba.x` in the package, else the top folder, or its `__main__`."""
    parts = module.split(".")
    return ".".join(parts[:2]) if len(parts) > 1 and (parts[0] == "ma2mba" or parts[1] == "__main__") else parts[0]


def circles(root: Path, imports: list[Import]) -> Iterator[str]:
    """Circles of files, and in every folder circles of its files and subfolders."""
    edges: dict[str, set[str]] = {}
    for i in imports:
        target = file_of(root, i.module)
        lazy = (i.file, i.function, i.module) in LAZY_DOORS
        if target and target != i.file and not lazy and not i.file.startswith("tests/"):
            edges.setdefault(i.file, set()).add(target)
    if found := circle(edges):
        yield f"circle of files: {' -> '.join(found)}"
        return
    folders = {parent.as_posix() for file in edges for parent in Path(file).parents if parent != Path(".")}
    for folder in sorted(folders):
        inside: dict[str, set[str]] = {}
        for file, targets in edges.items():
            for target in targets:
                one, other = child(folder, file), child(folder, target)
                if one and other and one != other:
                    inside.setdefault(one, set()).add(other)
        if found := circle(inside):
            yield f"circle in {folder}: {' -> '.join(found)}"


def child(folder: str, file: str) -> str | None:
    """The file or subfolder of `folder` in which `file` is; None outside, and for the folder's own __init__.py."""
    if not file.startswith(f"{folder}/") or file == f"{folder}/__init__.py":
        return None
    return f"{folder}/{file.removeprefix(f'{folder}/').split('/')[0]}"


def circle(edges: dict[str, set[str]]) -> list[str]:
    """A path that ends where it begins, beginning at the first name by alphabet; [] when there is none."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return path[path.index(node) :] + [node]
        if node in done:
            return []
        for target in sorted(edges.get(node, ())):
            if found := visit(target, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(edges) if (found := visit(node, []))), [])


def all_imports(root: Path) -> Iterator[Import]:
    for path in sources(root):
        yield from imports_of(path, root)


def sources(root: Path) -> list[Path]:
    return sorted(path for top in TOPS for path in (root / top).rglob("*.py"))


def imports_of(path: Path, root: Path) -> Iterator[Import]:
    """Every import of a file; `from package import module` names the module where there is one."""
    name = path.relative_to(root).as_posix()

    def walk(node: ast.AST, function: str) -> Iterator[Import]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        if isinstance(node, ast.Import):
            yield from (Import(name, node.lineno, alias.name, function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*path.relative_to(root).parts[: -node.level], *([base] if base else [])])
            yield from (Import(name, node.lineno, submodule(root, base, alias.name), function) for alias in node.names)
        for below in ast.iter_child_nodes(node):
            yield from walk(below, function)

    yield from dict.fromkeys(walk(ast.parse(path.read_text(encoding="utf-8")), ""))


def submodule(root: Path, base: str, name: str) -> str:
    """`base.name` if that is a module below `root`, else `base`: a name that `base` defines."""
    return f"{base}.{name}" if file_of(root, f"{base}.{name}") else base


def file_of(root: Path, module: str) -> str | None:
    """The file of a module below `root`, None for one of another project."""
    path = Path(module.replace(".", "/"))
    found = next((p for p in (path.with_suffix(".py"), path / "__init__.py") if (root / p).is_file()), None)
    return found.as_posix() if found else None


def module_of(file: str) -> str:
    return file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def names_in_strings(root: Path) -> Iterator[tuple[str, int, str]]:
    """Modules of other rooms that stand in strings of magc, as `importlib` takes them."""
    for path in sorted((root / "ma2mba" / "magc").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            parts = text.split(".")
            if parts[0] == "ma2mba" and len(parts) > 1 and all(p.isidentifier() for p in parts) and parts[1] != "magc":
                yield path.relative_to(root).as_posix(), node.lineno, text
