"""The files of a model folder by name, and their SHA-256 in checksums.json."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from ma2mba.errors import UserError
from ma2mba.files import inside, sha256_file
from ma2mba.model.run_folder import CHECKSUMS, CONFIG
from ma2mba.model.tensor_file import damaged, reason_of
from ma2mba.model.weights import INDEX, WEIGHTS
from ma2mba.text import JSON_BYTES, RECIPE_BYTES, read_json

TOKENIZER, CARD = "tokenizer.json", "README.md"
SHARD = re.compile(r"model-[0-9]{5}-of-[0-9]{5}\.safetensors")
MODEL_FILE = re.compile(
    r"(config|tokenizer|(generation|tokenizer|processor|preprocessor|video_preprocessor)_config)\.json"
    r"|special_tokens_map\.json|chat_template\.(jinja|json)|[a-z0-9_]{1,100}\.py|README\.md"
    rf"|{re.escape(WEIGHTS)}|{re.escape(INDEX)}|{SHARD.pattern}"
)
"""The names that checksums.json may list."""


def is_weights(name: str) -> bool:
    """Return True for the name of a file of tensors."""
    return name == WEIGHTS or SHARD.fullmatch(name) is not None


def checksums_text(sums: Mapping[str, str]) -> str:
    """Return the content of checksums.json."""
    return json.dumps(dict(sorted(sums.items())), indent=2) + "\n"


def read_checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of the files by name. Raise UserError if the file is wrong, or lists no model."""
    path = inside(folder, CHECKSUMS, folder)
    sums = read_json(path, RECIPE_BYTES)
    if not isinstance(sums, dict) or not all(isinstance(value, str) for value in sums.values()):
        raise UserError(f"{path}: not a list of files and their SHA-256. Export the model again with `ma2mba export`")
    for name in sums:
        inside(folder, name, path)
    needed = (CONFIG, TOKENIZER, INDEX if INDEX in sums else WEIGHTS)
    strange = sorted(name for name in sums if not MODEL_FILE.fullmatch(name) or (name == WEIGHTS and INDEX in sums))
    if odd := [*strange, *(name for name in needed if name not in sums)]:
        fault = f"lists {odd[0]!r}, which a model does not have" if odd[0] in sums else f"does not list {odd[0]}"
        raise UserError(f"{path}: {reason_of(fault)}. Export the model again with `ma2mba export`")
    return sums


def verify(folder: Path, sums: Mapping[str, str], *, whole: bool = False) -> None:
    """Raise UserError for the first listed file that is missing or differs. Tensors are verified when they are read.

    People edit model cards, and download a model without the files that this package does not read. Only `whole`
    refuses such a folder.
    """
    for name in dict.fromkeys((CONFIG, TOKENIZER, *sums)):
        path = inside(folder, name, folder)
        if is_weights(name) or (name == CARD and not whole):
            continue
        if whole or path.is_file() or name in (CONFIG, TOKENIZER, INDEX):
            _verify(path, sums.get(name))


def _verify(path: Path, expected: str | None) -> None:
    if not path.is_file():
        raise UserError(f"{path}: is missing. Export the model again with `ma2mba export`")
    if path.stat().st_size > JSON_BYTES:
        raise UserError(f"{path}: larger than {JSON_BYTES:,} bytes. Export the model again with `ma2mba export`")
    if expected is not None and sha256_file(path) != expected:
        if path.name == CARD:
            raise UserError(
                f"{path}: is damaged or was edited (its checksum differs from {CHECKSUMS}). If you edited it, remove "
                f"its line from {CHECKSUMS}"
            )
        raise damaged(path)
