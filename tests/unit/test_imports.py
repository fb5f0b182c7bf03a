"""Who may import whom (docs/architecture.md): read from the source of every file, imports inside functions too."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

MAY_IMPORT = {
    "ma2mba.errors": (),
    "ma2mba.magc": (),
    "ma2mba.ops": ("ma2mba.errors",),
    "ma2mba.shards": ("ma2mba.errors",),
    "ma2mba.model": ("ma2mba.errors", "ma2mba.ops", "ma2mba.shards"),
    "ma2mba.data": ("ma2mba.errors", "ma2mba.shards", "ma2mba.model.conversation"),
    "ma2mba.training": ("ma2mba.errors", "ma2mba.magc", "ma2mba.ops", "ma2mba.shards", "ma2mba.model", "ma2mba.data"),
    "ma2mba.inference": ("ma2mba.errors", "ma2mba.shards", "ma2mba.model", "ma2mba.data", "data_prep.frames"),
    "ma2mba.evaluation": ("ma2mba.errors", "ma2mba.shards", "ma2mba.model", "ma2mba.data", "ma2mba.inference"),
    "ma2mba.folders": ("ma2mba.errors", "ma2mba.shards", "ma2mba.model", "ma2mba.training", "ma2mba.evaluation"),
    "ma2mba.cli": ("ma2mba", "data_prep.progress"),
    "ma2mba.cli_plan": ("ma2mba.errors", "ma2mba.magc", "ma2mba.training", "ma2mba.evaluation"),
    "ma2mba.cli_replay": ("ma2mba.devices", "ma2mba.training"),
    "ma2mba.devices": ("ma2mba.errors",),
    "ma2mba.__main__": ("ma2mba.cli",),
    "data_prep.encode": (
        "data_prep",
        "ma2mba.errors",
        "ma2mba.shards",
        "ma2mba.model.vision",
        "ma2mba.model.pretrained",
    ),
    "data_prep": ("ma2mba.errors", "ma2mba.shards", "ma2mba.model.conversation", "ma2mba.evaluation.plot"),
}
"""A package or module -> what of this repository it may import beside itself."""

ONE_DOOR = {
    "deepspeed": ("ma2mba/training/deepspeed_engine.py",),
    "av": ("data_prep/decode.py", "data_prep/probe.py", "data_prep/toy/"),
    "decord": ("data_prep/decord_reader.py",),
    "pyarrow": ("ma2mba/shards/",),
    "transformers": ("ma2mba/model/vision.py",),
    "mamba_ssm": ("ma2mba/ops/",),
    "causal_conv1d": ("ma2mba/ops/",),
    "ray": ("data_prep/ray_executor.py",),
    "matplotlib": ("ma2mba/evaluation/plot.py",),
}
"""A heavy dependency -> the only files, or folders, that may import it."""

MAGC_MAY_IMPORT = {"torch", "ma2mba", *sys.stdlib_module_names}


def test_every_import_is_allowed():
    assert problems(ROOT) == []


@pytest.mark.parametrize(
    ("path", "source", "problem"),
    [
        ("ma2mba/model/x.py", "from ma2mba.magc import Plan", "may not import ma2mba.magc"),
        ("ma2mba/magc/x.py", "import ma2mba.model.mamba2", "may not import ma2mba.model.mamba2"),
        ("ma2mba/magc/x.py", "def f():\n    import numpy", "magc stands on torch and the standard library alone"),
        ("ma2mba/magc/x.py", "from ..errors import UserError", "may not import ma2mba.errors"),
        ("ma2mba/data/x.py", "from ma2mba.model.config import ModelConfig", "may not import ma2mba.model.config"),
        ("ma2mba/data/x.py", "from ma2mba import training", "may not import ma2mba.training"),
        ("ma2mba/training/x.py", "from ma2mba.inference import session", "may not import ma2mba.inference"),
        ("ma2mba/inference/x.py", "from data_prep.decode import decode_video", "may not import data_prep.decode"),
        ("data_prep/x.py", "if True:\n    from ma2mba.model import vision", "may not import ma2mba.model.vision"),
        ("launch/x.py", "import deepspeed.comm", "deepspeed is imported only in"),
        ("ma2mba/data/x.py", "import pyarrow.parquet as pq", "pyarrow is imported only in"),
        ("data_prep/encode.py", "from av import open", "av is imported only in"),
        ("data_prep/decode.py", "import decord", "decord is imported only in"),
        ("ma2mba/model/pretrained.py", "import transformers", "transformers is imported only in"),
        ("ma2mba/surprise/x.py", "import json", "add it to MAY_IMPORT"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path, path, source, problem):
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(source)
    found = problems(tmp_path)
    assert len(found) == 1
    assert problem in found[0]
    assert found[0].startswith(path)


def problems(root: Path) -> list[str]:
    """Every import below `root` that breaks a rule, as "file:line: what"."""
    found = []
    for path in sorted(p for top in ("ma2mba", "data_prep", "launch") for p in (root / top).rglob("*.py")):
        name = path.relative_to(root).as_posix()
        for line, module in imports(path, root):
            found += [f"{name}:{line}: {what}" for what in judge(name, module)]
    return found


def judge(name: str, module: str) -> Iterator[str]:
    top = module.split(".")[0]
    for dependency, places in ONE_DOOR.items():
        if top == dependency and not name.startswith(places):
            yield f"{dependency} is imported only in {', '.join(places)}"
    if name.startswith("ma2mba/magc/") and top not in MAGC_MAY_IMPORT:
        yield f"magc stands on torch and the standard library alone, not on {top}"
    if name.startswith("launch/") or name == "ma2mba/__init__.py":
        return
    importer = name.removesuffix(".py").replace("/", ".")
    owner = next((owner for owner in MAY_IMPORT if within(importer, owner)), None)
    if owner is None:
        yield f"{importer} has no rule; add it to MAY_IMPORT"
    elif top in ("ma2mba", "data_prep") and not any(within(module, ok) for ok in (owner, *MAY_IMPORT[owner])):
        yield f"{owner} may not import {module}"


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def imports(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of every import; `from package import module` names the module where there is one."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = path.relative_to(root).parts[: -node.level]
                base = ".".join([*package, *([base] if base else [])])
            if base in MAY_IMPORT or base == "ma2mba":
                yield from ((node.lineno, submodule(base, alias.name)) for alias in node.names)
            else:
                yield node.lineno, base


def submodule(base: str, name: str) -> str:
    """`base.name` if that is a module of this repository, else `base`: a name that `base` defines."""
    place = ROOT / base.replace(".", "/") / name
    return f"{base}.{name}" if place.is_dir() or place.with_suffix(".py").is_file() else base
