"""Which files of a repository on the Hugging Face hub are downloaded: those that are read, and no others."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ma2mba.files import inside
from ma2mba.hub import HubName
from ma2mba.model.pickled import PICKLE, PICKLE_INDEX
from ma2mba.model.run_folder import CHECKSUMS
from ma2mba.model.weights import INDEX, WEIGHTS, listed

ORIGIN = "origin.json"
"""In a folder of imported weights: where they come from."""


def download_weights(name: HubName) -> None:
    """Download safetensors, or else pickled checkpoints, in one or several files. `name` is pinned to a commit."""
    for single, index in ((WEIGHTS, INDEX), (PICKLE, PICKLE_INDEX)):
        if name.find(single):
            return
        if found := name.find(index):
            for part in listed(found):
                name.file(str(inside(found.parent, part, found).relative_to(found.parent)))
            return


def download_model(name: HubName) -> None:
    """Download a model of this project: configuration, tokenizer and weights. No code is downloaded."""
    name.find(CHECKSUMS)
    name.file("tokenizer.json")
    download_weights(name)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
