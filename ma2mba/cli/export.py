"""`ma2mba export`: write the model of a run or of a model folder to a folder that transformers reads."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ma2mba.cli.output import print_line
from ma2mba.errors import UserError
from ma2mba.files import inside, refuse_link, writing


class Format(StrEnum):
    """What `export` writes."""

    hugging_face = "hugging-face"
    state_spaces = "state-spaces"
    transformers_mamba2 = "transformers-mamba2"


def export(
    source: Annotated[Path, typer.Argument(help="Run folder, or a model folder of any format.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Model folder to write.")],
    step: Annotated[
        int | None, typer.Option("--step", min=0, help="Step of the run to export (default: the latest).")
    ] = None,
    to: Annotated[
        Format, typer.Option("--format", help="The whole model, or its language model alone in a published format.")
    ] = Format.hugging_face,
) -> None:
    """Write a model to a folder of its own, in the format of Hugging Face, and verify it."""
    model = export_model(source, out_dir, step, to)
    if to is Format.hugging_face:
        print_line(f"{out_dir}: the model of {model}, checksums verified")
    else:
        print_line(f"{out_dir}: the language model of {model}, in the format of {to}")


def export_model(source: Path, out_dir: Path, step: int | None = None, to: Format = Format.hugging_face) -> Path:
    """Write the model of a run's checkpoint, or of a model folder, to `out_dir`. Return where the model was.

    In a published format, the language model alone; `source` may then hold a language model alone.

    Raises UserError if `out_dir` is a symbolic link or not empty, if there is no such checkpoint, if a checksum
    differs, and for NaN and infinite weights.
    """
    from ma2mba.model.pretrained import copy_model, open_model
    from ma2mba.model.published import export_language_model
    from ma2mba.training.checkpoint.folder import CHECKPOINTS

    if not source.exists():
        raise UserError(f"{source}: does not exist. Give the folder of a run or of a model")
    refuse_link(out_dir)
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise UserError(f"{out_dir}: exists and is not empty. Choose another --out or remove it")
    if out_dir.resolve().is_relative_to((source / CHECKPOINTS).resolve()):
        raise UserError(f"{out_dir}: lies within the checkpoints of the run. Choose another --out")
    place, model = _find(source, step, to)
    if to is Format.hugging_face:
        copy_model(open_model(model), out_dir)
    else:
        with writing(out_dir):
            export_language_model(model, out_dir, to)
    return place


def _find(source: Path, step: int | None, to: Format) -> tuple[Path, Path]:
    """Return the checkpoint, or the model folder, that `source` and `step` mean, and its model folder."""
    from ma2mba.model.pretrained import is_model_folder
    from ma2mba.model.run_folder import find_model
    from ma2mba.training.checkpoint.folder import CHECKPOINTS, MODEL, find_checkpoint

    if (source / CHECKPOINTS).is_dir():
        checkpoint = find_checkpoint(source, step)
        return checkpoint, inside(source, str((checkpoint / MODEL).relative_to(source)), source)
    model = find_model(source)
    if to is Format.hugging_face and not is_model_folder(model):
        raise UserError(f"{source}: neither a run folder (no {CHECKPOINTS}/) nor a model folder. Give one of these")
    if step is not None:
        raise UserError(f"--step {step}: {source} is a model folder, which has no steps. Remove --step, or give a run")
    return model, model
