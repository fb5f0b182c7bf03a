"""The only door to `datasets`: annotation files in the layout of the Hugging Face hub.

`datasets` finds the files of a configuration and a split, and streams Parquet and Arrow. JSON and CSV files go to the
parsers of `files.py`: the JSON and CSV readers of `datasets` guess types, so texts that look like dates become dates,
and a field that is a text in one record and a number in another becomes a JSON text in all of them.

No code of a data set runs. Without `online`, nothing outside the folder is read and no network is used.
"""

import logging
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from ma2mba.annotations.csv_files import csv_rows
from ma2mba.annotations.files import Records, json_records, without_nulls
from ma2mba.errors import UserError
from ma2mba.files import OutsideFolder, inside, read_bounded
from ma2mba.shards.tables import ROW_GROUP_BYTES, SPARE, decompressing, memory_for
from ma2mba.text import JSON_BYTES, RECIPE_BYTES, parse_yaml, read_json

SUFFIXES = {
    "parquet": (".parquet",),
    "arrow": (".arrow",),
    "json": (".json", ".jsonl", ".ndjson"),
    "csv": (".csv",),
}
"""Kind of files, as `datasets` names it -> suffixes."""
HUB = "hf://datasets/"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_METADATA = ("README.md", ".huggingface.yaml", "dataset_infos.json")
"""The files in which `datasets` looks for configurations and types."""
Splits = dict[str, list[str]]
"""Split -> the paths of its files, or their addresses on the hub (HUB, name, @, commit, /, path)."""


@dataclass(frozen=True)
class DatasetFile:
    """A data file of a data set. `kind` is a key of SUFFIXES, `address` a path or an address on the hub."""

    kind: str
    address: str

    @property
    def path(self) -> Path | None:
        """The path of a file in a folder, None on the hub."""
        return None if self.address.startswith(HUB) else Path(self.address)

    def records(self, columns: Sequence[str] = ()) -> Records:
        """Yield ("row 1", record), ...; for JSON and CSV the places are lines. A null counts as a missing field.

        If `columns` are given, records of Parquet and Arrow have only these. Raise UserError if the file is damaged or,
        except JSON, lacks one of `columns`.
        """
        if self.kind in ("parquet", "arrow"):
            return self._streamed(columns)
        path = self.path or _download(self.address)
        return json_records(path) if self.kind == "json" else csv_rows(*columns)(path)

    def _memory(self, columns: Sequence[str]) -> int:
        """Return the bytes that reading the file may need. Raise UserError if a part of it is too large."""
        if self.path and self.kind == "parquet":
            return memory_for(self.path, columns)
        return SPARE + (4 * min(self.path.stat().st_size, ROW_GROUP_BYTES) if self.path else 4 * ROW_GROUP_BYTES)

    def _streamed(self, columns: Sequence[str]) -> Records:
        import datasets
        from datasets.data_files import DataFilesDict, DataFilesList

        memory = self._memory(columns)
        files = DataFilesDict({"all": DataFilesList([self.address], [()])})  # a plain list would be patterns
        try:
            with _session(online=not self.path) as cache:
                rows = datasets.load_dataset(self.kind, data_files=files, split="all", streaming=True, cache_dir=cache)
            if missing := [column for column in columns if column not in rows.features]:
                there = ", ".join(rows.features)
                raise UserError(f"{self.address}: no column {', '.join(missing)}. It has the columns {there}")
            rows = rows.select_columns([*columns]) if columns else rows
            for column, feature in rows.features.items():
                if isinstance(feature, datasets.Image | datasets.Audio | datasets.Video):
                    rows = rows.cast_column(column, type(feature)(decode=False))
            for i, row in enumerate(_bounded(iter(rows), memory), 1):
                yield f"row {i}", without_nulls(row)
        except UserError:
            raise
        except MemoryError as error:
            raise UserError(f"{self.address}: needs more memory than it declares. Download or copy it again") from error
        except Exception as error:  # `datasets` raises errors of many libraries
            kind = self.kind.capitalize()
            raise UserError(
                f"{self.address}: not a complete {kind} file ({_line(error)}). Download or copy it again"
            ) from error


def _bounded(rows: Iterator[Any], memory: int) -> Iterator[Any]:
    """Yield the rows. Raise MemoryError if reading one takes more than `memory` bytes."""
    while True:
        with decompressing(memory):
            row = next(rows, None)
        if row is None:
            return
        yield row


Named = list[tuple[str, DatasetFile]]
"""(name for messages, data file)."""


def find_files(path: str, base: Path, name: str | None, split: str | None, *, online: bool = False) -> Named:
    """Return the files of a split of a data set, in order: a folder, counted from `base`, or a name on the hub.

    `name` is the configuration; None means the default. `split` may be None if there is only one. Raise UserError if
    the data set, the configuration or the split does not exist, if a file is not inside the folder, and for a name on
    the hub unless `online`.
    """
    folder = (base / path).resolve()
    if folder.is_dir():
        kind, splits = _splits_in_folder(folder, name)
        chosen = _choose(splits, split, path)
        _check_inside(folder, chosen)
        names = [os.path.join(path, Path(file).relative_to(folder)) for file in chosen]
    elif _HUB_NAME.fullmatch(path) and online:
        kind, splits = _splits_on_hub(path, name)
        names = chosen = _choose(splits, split, path)
    elif _HUB_NAME.fullmatch(path):
        raise UserError(f"{folder} is not a folder. If {path} is a name on the Hugging Face hub, give --online")
    else:
        raise UserError(f"{folder} is not a folder. Give a folder, or owner/name on the Hugging Face hub")
    if other := [file for file in chosen if not file.lower().endswith(SUFFIXES[kind])]:
        raise UserError(f"{other[0]}: {path} consists of {kind} files; this file is not one. Convert or unpack it")
    return [(name, DatasetFile(kind, file)) for name, file in zip(names, chosen, strict=True)]


@cache
def _splits_on_hub(path: str, name: str | None) -> tuple[str, Splits]:
    """Return the kind and the splits of a data set on the hub: in one process always of the same commit."""
    return _splits_of(path, name, online=True)


def _choose(splits: Splits, split: str | None, path: str) -> list[str]:
    """Return the files of a split. Raise UserError that lists the splits when there is none of this name."""
    names = ", ".join(splits)
    if split is None and len(splits) > 1:
        raise UserError(f"{path} has the splits {names}. Set split to one of them")
    if split is not None and split not in splits:
        raise UserError(f"{path} has no split {split}. Its splits: {names}")
    return splits[split or next(iter(splits))]


def _splits_in_folder(folder: Path, name: str | None) -> tuple[str, Splits]:
    """Return the kind and the splits of a folder: one of `save_to_disk`, or one in the layout of the hub."""
    _check_inside(folder, [str(file) for file in (folder / name for name in _METADATA) if file.exists()])
    if saved := _saved_splits(folder):
        if name is not None:
            raise UserError(f"{folder}: a folder of save_to_disk has no configurations. Remove name")
        return "arrow", saved
    if scripts := sorted(script.name for script in folder.glob("*.py")):
        raise UserError(
            f"{folder}: contains the script {scripts[0]}, but ma2mba runs no code of a data set. If the script loads "
            f"the data, export them to Parquet or JSON; otherwise move it out of the folder"
        )
    _check_metadata(folder)
    return _splits_of(str(folder), name, online=False)


def _splits_of(path: str, name: str | None, *, online: bool) -> tuple[str, Splits]:
    """Return the kind and the splits of a configuration, as `datasets` finds them."""
    import datasets

    try:
        with _session(online=online) as cache:
            builder = datasets.load_dataset_builder(path, name, cache_dir=cache)
    except Exception as error:  # `datasets` raises errors of many libraries
        remedy = "Check the name and the network, or give a folder" if online else "Correct the folder or the recipe"
        raise UserError(f"{path}: cannot be opened as a data set: {_line(error)}. {remedy}") from error
    if builder.name not in SUFFIXES:
        raise UserError(
            f"{path}: most files are of the kind {builder.name}. Keep media in another folder, or name the annotation "
            f"files under configs in README.md. Supported: {', '.join(SUFFIXES)}"
        )
    if options := _options(builder.config):
        raise UserError(
            f"{path}: the configuration {builder.config.name} sets {', '.join(options)}, which is not supported. "
            f"Convert the files to Parquet or JSON"
        )
    return builder.name, {
        str(split): [str(file) for file in files] for split, files in builder.config.data_files.items()
    }


def _options(config: Any) -> list[str]:
    """Return what a configuration changes about the reading of its files, such as the separator of CSV."""
    plain = {"name", "version", "data_dir", "data_files", "description", "features"}
    return [
        f"{option.name}={value!r}"
        for option in fields(config)
        if option.name not in plain
        and option.default is not MISSING
        and (value := getattr(config, option.name)) != option.default
    ]


def _saved_splits(folder: Path) -> Splits:
    """Return the splits of a folder that `save_to_disk` of `datasets` wrote; {} for another folder."""
    try:
        if (whole := folder / "dataset_dict.json").is_file():
            _check_inside(folder, [str(whole)])
            return {split: _saved_files(folder, _text(split)) for split in read_json(whole)["splits"]}
        return {"train": _saved_files(folder, "")} if (folder / "state.json").is_file() else {}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder}: not a complete folder of save_to_disk ({error!r:.200}). Save or copy it again"
        ) from error


def _saved_files(folder: Path, split: str) -> list[str]:
    state = folder / split / "state.json"
    _check_inside(folder, [str(state)])
    return [str(state.parent / _text(file["filename"])) for file in read_json(state)["_data_files"]]


def _text(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"{value!r:.100} is not a name")
    return value


def _check_metadata(folder: Path) -> None:
    """Raise UserError if the configurations of a folder name a file outside the folder, or an address."""
    for file in (folder / name for name in _METADATA):
        if not file.is_file():
            continue
        try:
            configs = (_metadata(file) or {}).get("configs") or []
            named = [
                text for config in configs for key in ("data_files", "data_dir") for text in _texts(config.get(key))
            ]
        except (ValueError, AttributeError, TypeError) as error:
            raise UserError(f"{file}: its configs cannot be read ({_line(error)}). Correct them") from error
        for text in named:
            if "::" in text or "://" in text or text.startswith(("/", "~")) or ".." in PurePosixPath(text).parts:
                raise UserError(f"{file}: names {text}, which is not inside the folder. Correct its configs")


def _metadata(file: Path) -> Any:
    """Return the content of a metadata file: of a README, its YAML block. Raise ValueError if it is not YAML."""
    if file.suffix == ".json":
        return read_json(file)
    content = read_bounded(file, JSON_BYTES if file.suffix == ".md" else RECIPE_BYTES)
    if file.suffix == ".md":
        from huggingface_hub.repocard import REGEX_YAML_BLOCK  # what `datasets` will find and parse

        block = REGEX_YAML_BLOCK.search(content.decode())
        content = block[2].encode() if block else b""
        if len(content) > RECIPE_BYTES:
            raise ValueError(f"its YAML block is larger than {RECIPE_BYTES:,} bytes")
    return parse_yaml(content)


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in nested lists and dictionaries."""
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(inner)


def _check_inside(folder: Path, files: list[str]) -> None:
    """Raise UserError unless all files exist in `folder`, also after links."""
    for file in files:
        try:
            real = inside(folder, os.path.relpath(file, folder), folder)
        except OutsideFolder as error:
            raise UserError(
                f"{file} leads out of the folder {folder}, to {os.path.realpath(file)}. Copy the file into the folder"
            ) from error
        if not real.is_file():
            raise UserError(f"{file} is not a file. Download or copy the data set again")


def hub_folder(name: str, patterns: Sequence[str], *, online: bool) -> Path:
    """Return the folder of a data set in the cache of the hub. With `online`, download the files that fit a pattern.

    Raise UserError if `name` is no name on the hub, or if the cache lacks the data set and `online` is False.
    """
    if not _HUB_NAME.fullmatch(name):
        raise UserError(f"{name}: no such folder. Give the folder of a data set, or owner/name on the Hugging Face hub")
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            name, repo_type="dataset", allow_patterns=["README.md", *patterns], local_files_only=not online
        )
    except Exception as error:  # the hub's client raises errors of many libraries
        if not online and (incomplete := getattr(error, "snapshot_path", None)):
            return Path(incomplete)  # files that fit a pattern, and were never wanted, are missing
        if online:
            raise UserError(f"{name}: cannot be downloaded ({_line(error)}). Check the name and the network") from error
        raise UserError(
            f"{name}: neither a folder nor in the cache of the Hugging Face hub. Give a folder, or download the data "
            f"set: hf download {name} --repo-type dataset"
        ) from error
    return Path(folder)


def _download(address: str) -> Path:
    """Return the path of a file of the hub, from the cache of the hub or downloaded to it."""
    from huggingface_hub import hf_hub_download

    owner, rest, file = address.removeprefix(HUB).split("/", 2)
    name, commit = rest.split("@", 1)
    try:
        return Path(hf_hub_download(f"{owner}/{name}", file, repo_type="dataset", revision=commit))
    except Exception as error:  # the hub's client raises errors of many libraries
        raise UserError(f"{address}: cannot be downloaded ({_line(error)}). Run the command again") from error


@contextmanager
def _session(*, online: bool) -> Iterator[str]:
    """Yield a temporary cache folder. Unless `online`, `datasets` and the hub's client are offline in the block."""
    import datasets
    import huggingface_hub.constants

    datasets.logging.set_verbosity(logging.CRITICAL)  # it logs every error that it raises
    switches: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [switch.HF_HUB_OFFLINE for switch in switches]
    try:
        for switch in switches if not online else ():
            switch.HF_HUB_OFFLINE = True
        with tempfile.TemporaryDirectory() as cache:
            yield cache
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.HF_HUB_OFFLINE = value


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
