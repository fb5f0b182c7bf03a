"""Find the model in a folder: a model folder, a checkpoint, or a run, whose file `checkpoints/latest` names one."""

import os
import re
from pathlib import Path

from ma2mba.errors import UserError
from ma2mba.files import inside, read_bounded

CHECKPOINTS, LATEST, MODEL = "checkpoints", "latest", "model"
CHECKSUMS, CONFIG = "checksums.json", "config.json"
"""The files that make a folder a model folder: `save_pretrained` of transformers writes no checksums."""
TAG = re.compile(r"step-([0-9]{6,})")
TAG_BYTES = 256


def find_model(source: Path | str) -> Path:
    """Return the model folder that `source` is or holds: of a run, its latest checkpoint's.

    Raise UserError if `source` does not exist, or is a run without a checkpoint. Verifies no model.
    """
    folder = Path(source)
    if not folder.exists():
        raise UserError(f"{folder}: does not exist. Give a model folder, or the folder of a run")
    if not folder.is_dir():
        raise UserError(f"{folder}: is not a folder. Give a model folder, or the folder of a run")
    if any(os.path.lexists(folder / name) for name in (CHECKSUMS, CONFIG)):
        return folder
    if newest := latest(folder):
        return inside(folder, f"{CHECKPOINTS}/{newest.name}/{MODEL}", newest)
    if (folder / CHECKPOINTS).is_dir():
        raise UserError(f"{folder}: this run has no finished checkpoint. Train longer, or give another folder")
    return inside(folder, MODEL, folder) if (folder / MODEL).is_dir() else folder


def latest(run: Path) -> Path | None:
    """Return the checkpoint that the file `latest` of a run names, None if there is no `latest`. Does not read it.

    Raise UserError if `latest` does not hold the name of a checkpoint.
    """
    path = inside(run, f"{CHECKPOINTS}/{LATEST}", run)
    if not os.path.lexists(path):
        return None
    tag = read_bounded(path, TAG_BYTES).decode(errors="replace").strip()
    if not TAG.fullmatch(tag):
        raise UserError(f"{path}: holds {tag!r}, not the name of a checkpoint. Write the name of one there")
    return inside(run, f"{CHECKPOINTS}/{tag}", path)
