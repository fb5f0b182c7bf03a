"""The version of the code, which checkpoints store."""

import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from ma2mba.shipped import CHECKOUT


@cache
def code_version() -> dict[str, str | None]:
    """Return the package's version ("not installed" if unknown) and the commit of its git checkout.

    The commit ends in "-dirty" if files have changed. It is None without a checkout.
    """
    try:
        return {"version": version("ma2mba"), "commit": _commit()}
    except PackageNotFoundError:
        return {"version": "not installed", "commit": _commit()}


def describe(code: dict[str, str | None]) -> str:
    """Return a version as text, such as "ma2mba 0.1.0 (commit 0123456789)", and say if it differs from this code."""
    commit = f" (commit {code['commit']})" if code.get("commit") else ""
    return f"ma2mba {code.get('version')}{commit}" + ("" if code == code_version() else ", a different version")


def _commit() -> str | None:
    if not (CHECKOUT / ".git").exists():
        return None
    command = ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
