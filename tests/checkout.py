"""A copy of what pip needs to build the package: pip writes into the folder that it builds."""

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def copy_checkout(folder: Path) -> Path:
    """Copy the package's code, recipes and policies to `folder`, and return `folder`."""
    for name in ("ma2mba", "data_prep", "launch", "ds_configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder
