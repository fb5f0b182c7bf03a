"""The annotation files of a data set in its published layout: in a folder, or in the cache of the Hugging Face hub."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ma2mba.annotations.files import Files
from ma2mba.annotations.huggingface import SUFFIXES, DatasetFile, find_files, hub_folder
from ma2mba.errors import UserError
from ma2mba.files import inside

Layout = Mapping[str, Sequence[str]]
"""Split -> patterns of its annotation files below the folder. The first pattern that fits any file counts."""
ELSEWHERE = tuple(
    f"{folder}/*{suffix}"
    for folder in ("annotations", "annotation", "data")
    for suffix in (".parquet", ".csv", ".jsonl", ".json")
)
"""Patterns of annotation files in no published layout, where people keep them."""


def published_folder(data: Path | str, layout: Layout, *, more: Sequence[str] = (), online: bool = False) -> Path:
    """Return the folder of a data set: `data` itself, or the folder of the hub's cache if `data` is a name on the hub.

    With `online`, files that fit a pattern of `layout` or `more` are downloaded to the cache first. Videos are not.
    Raise UserError if there is no such folder.
    """
    if os.path.isdir(data):
        return Path(data)
    wanted = [pattern for patterns in layout.values() for pattern in patterns]
    return hub_folder(str(data), [*wanted, *more], online=online)


def annotation_files(folder: Path, layout: Layout, split: str | None) -> tuple[str, Files]:
    """Return a split's name and its annotation files. Without `split`, the first split that is there.

    Files in no known place are found as `datasets` finds them: by the folder's README, or by `save_to_disk`. JSON and
    CSV files are paths, for the parser of the format. Raise UserError if no file is found.
    """
    if split and split not in layout:
        raise UserError(f"--split {split}: unknown. This benchmark has the splits {', '.join(layout)}")
    for name in [split] if split else [*layout, ""]:
        for pattern in layout[name] if name else ELSEWHERE:
            if found := sorted(path for path in folder.glob(pattern) if path.is_file()):
                for path in found:
                    inside(folder, str(path.relative_to(folder)), folder)
                return name, [(str(path), _file(path)) for path in found]
    if any((folder / name).is_file() for name in ("README.md", "state.json", "dataset_dict.json")):
        return split or "", [*find_files(str(folder), folder, None, split)]
    first = ", ".join(patterns[0] for patterns in layout.values())
    raise UserError(f"{folder}: no annotation file is here. Give the folder that holds {first}")


def _file(path: Path) -> Path | DatasetFile:
    kind = next((kind for kind, suffixes in SUFFIXES.items() if path.name.lower().endswith(suffixes)), "json")
    return path if kind in ("json", "csv") else DatasetFile(kind, str(path))
