"""A Python process that has some distributions and what they require, and nothing else: not this package."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def site(folder: Path, names: Sequence[str]) -> Path:
    """Fill a new folder with links to distributions and to all that they require. Return the folder."""
    folder.mkdir()
    for distribution in closure(names):
        files = distribution.files or []
        for top in sorted({file.parts[0] for file in files} - {"..", "__pycache__"}):
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(distribution.locate_file(top))))
    return folder


def closure(names: Sequence[str]) -> list[metadata.Distribution]:
    """Return these distributions and what they require. Raise PackageNotFoundError if one of `names` is missing."""
    found: dict[str, metadata.Distribution] = {}
    todo = [(canonicalize_name(name), True) for name in names]
    while todo:
        name, wanted = todo.pop()
        if name in found:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            if wanted:
                raise
            continue
        for line in found[name].requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.append((canonicalize_name(requirement.name), False))
    return list(found.values())


def run(place: Path, script: str, given: Any = None, **environment: str) -> Any:
    """Run a script with the packages of `place` alone. Return the JSON that it prints last; `given` is its JSON input.

    Raise AssertionError with what the script wrote if it fails.
    """
    kept = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "TMPDIR", "OMP_NUM_THREADS")}
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(place.with_name("hf_home")), "PYTHONPATH": str(place)}
    done = subprocess.run(
        [sys.executable, "-S", "-c", script],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        env=kept | offline | environment,
        cwd=place.parent,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    return json.loads(done.stdout.splitlines()[-1])
