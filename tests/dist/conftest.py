"""Data and a recipe for tests that launch CPU ranks over gloo."""

from pathlib import Path

import pytest
import yaml

from tests.dist.launching import RECIPE
from tests.unit.data.toy_shards import write_shards

SIZES = [(3, 4), (0, 5), (7, 2), (1, 9), (2, 3), (5, 5), (4, 12), (1, 1), (6, 3)]
"""Frames and words of the answer of each sample."""


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """Return the folder of all runs, with `recipe.yaml` and `shards` (different lengths, one sample without frames)."""
    folder = tmp_path_factory.mktemp("dist")
    write_shards(folder / "shards", SIZES)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return folder
