"""Fixtures and hooks for all tests."""

import os
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp()  # the first build creates a key there
ROOT = Path(__file__).resolve().parents[1]
LONGEST = (
    "e2e/test_demo_small.py",
    "e2e/test_hf_folder.py",
    "dist/test_training.py",
    "dist/test_two_nodes.py",
    "dist/test_zero.py",
    "unit/cli/test_eval_killed.py",
    "unit/data_prep/test_long_video.py",
    "dist/test_failures.py",
    "dist/test_refusals.py",
)
"""The test files that take over a minute. They start first, so that all workers end at about the same time."""


def pytest_configure(config: pytest.Config) -> None:
    """Let pytest-xdist keep our order of files. By default it starts with the files that have the most tests."""
    if hasattr(config.option, "loadscopereorder"):  # only with pytest-xdist
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move the files in LONGEST to the front."""
    place = {ROOT / "tests" / name: n for n, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder beside the checkout with real videos, a tokenizer and a vision encoder; skip without it."""
    folder = ROOT.parent / "shared" / "assets"
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist: real videos, tokenizer and vision encoder are not on this machine")
    return folder
