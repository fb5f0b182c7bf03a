"""Real launches on CPU ranks over gloo."""

import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "unit" / "data"))

RECIPE = {
    "stage": "stage2",
    "data": "shards",
    "run": "run",
    "model": {
        "language_model": {
            "d_model": 32,
            "n_layer": 2,
            "d_state": 16,
            "headdim": 16,
            "vocab_size": 32,
            "ssd_block": 16,
        },
        "vision": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 7,
        },
    },
    "trainable": {"projector": 2e-3, "language_model": 2e-3, "vision": 1e-3},
    "global_batch": 4,
    "micro_batch": 2,
    "steps": 9,
    "precision": "fp32",
    "magc": {"chunk_tokens": 16},
    "checkpoint": {"every": 3, "keep_last": None},
    "log_every": 1,
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A folder with `shards` (different lengths, one sample without frames) and `recipe.yaml`; runs go there too."""
    from toy_shards import write_shards

    folder = tmp_path_factory.mktemp("dist")
    write_shards(folder / "shards", [(3, 4), (0, 5), (7, 2), (1, 9), (2, 3), (5, 5), (4, 12), (1, 1), (6, 3)])
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return folder
