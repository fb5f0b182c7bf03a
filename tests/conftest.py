"""What every test may use."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real videos, a tokenizer and a vision encoder that lie beside the checkout on the project's own machines."""
    folder = ROOT.parent / "shared" / "assets"
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist: real videos, tokenizer and vision encoder are not on this machine")
    return folder
