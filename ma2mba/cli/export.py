"""`ma2mba export`: copy a checkpoint's model to a folder of its own."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from ma2mba.cli.output import print_line
from ma2mba.errors import UserError
from ma2mba.files import atomic_folder, inside


def export(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Model folder to write.")],
    step: Annotated[int | None, typer.Option("--step", min=0, help="Step to export (default: the latest).")] = None,
) -> None:
    """Copy a checkpoint's model to a folder of its own, and verify its checksums."""
    source = export_model(run, out_dir, step)
    print_line(f"{out_dir}: the model of {source}, checksums verified")


def export_model(run: Path, out_dir: Path, step: int | None = None) -> Path:
    """Copy the model of a run's checkpoint to `out_dir` and verify it there; return the checkpoint's folder.

    Copies the files of a model folder and nothing else. Raises UserError if `out_dir` is a symbolic link or not empty,
    if there is no such checkpoint, if a checksum differs, and for NaN and infinite weights.
    """
    from ma2mba.model.pretrained import CHECKSUMS, FILES, open_model
    from ma2mba.training.checkpoint.folder import CHECKPOINTS, MODEL, find_checkpoint

    if not run.exists():
        raise UserError(f"{run}: does not exist. Give the folder of a run")
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise UserError(f"{out_dir}: exists and is not empty. Choose another --out or remove it")
    if out_dir.resolve().is_relative_to((run / CHECKPOINTS).resolve()):
        raise UserError(f"{out_dir}: lies within the checkpoints of the run. Choose another --out")
    checkpoint = find_checkpoint(run, step)
    model = inside(run, str((checkpoint / MODEL).relative_to(run)), run)
    open_model(model)
    with atomic_folder(out_dir) as temporary:
        for name in (*FILES, CHECKSUMS):
            shutil.copyfile(inside(model, name, model), temporary / name)
        open_model(temporary).weights.require_finite()
    return checkpoint
