"""What every test may use."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
LONGEST = (
    "e2e/test_demo_small.py",
    "dist/test_training.py",
    "dist/test_two_nodes.py",
    "dist/test_zero.py",
    "unit/data_prep/test_long_video.py",
    "dist/test_failures.py",
    "dist/test_refusals.py",
)
"""The files that take over a minute; what comes last must be short for all workers to end together."""


def pytest_configure(config: pytest.Config) -> None:
    """Workers take files in the order below, not those of most tests first."""
    if hasattr(config.option, "loadscopereorder"):  # of pytest-xdist
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {ROOT / "tests" / name: n for n, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real videos, a tokenizer and a vision encoder that lie beside the checkout on the project's own machines."""
    folder = ROOT.parent / "shared" / "assets"
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist: real videos, tokenizer and vision encoder are not on this machine")
    return folder
