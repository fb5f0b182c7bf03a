"""`make test-oldest` tests the lowest versions that setup.py promises, and no others."""

import re
from pathlib import Path

import setuptools

ROOT = Path(__file__).resolve().parents[2]


def test_the_oldest_versions_are_those_of_setup_py(monkeypatch):
    lowest = dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", r).groups() for r in requirements(monkeypatch) if ">=" in r)
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / ".ci/constraints-oldest.txt").read_text(), re.MULTILINE))
    assert lowest.keys() == pinned.keys()
    for name, version in lowest.items():
        assert pinned[name] == full(version), f"{name}: setup.py says {version}"


def requirements(monkeypatch) -> list[str]:
    """Return the requirements of the package, of the server and of the tests, as setup.py gives them to setuptools."""
    given = {}
    monkeypatch.setattr(setuptools, "setup", lambda **values: given.update(values))
    exec(compile((ROOT / "setup.py").read_text(), str(ROOT / "setup.py"), "exec"), {"__file__": str(ROOT / "setup.py")})
    extras = given["extras_require"]
    return [*given["install_requires"], *extras["serve"], *extras["dev"]]


def full(version: str) -> str:
    """Return a version with three numbers: 5.4 means 5.4.0."""
    return ".".join((version.split(".") + ["0", "0"])[:3])
