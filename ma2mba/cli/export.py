"""`ma2mba export`: write the model of a run or of a model folder to a folder that transformers reads."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ma2mba.cli.output import print_line
from ma2mba.errors import UserError
from ma2mba.files import inside, refuse_link, writing
from ma2mba.hub_upload import require_target, upload


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
    license: Annotated[
        str | None, typer.Option("--license", help="Licence for the model card: apache-2.0, mit, other ...")
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(
            "--push", help="Upload the folder to this repository of the hub, OWNER/NAME (a new one: private)."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the files, their sizes and the target. Write and upload nothing.")
    ] = False,
) -> None:
    """Write a model to a folder of its own, in the format of Hugging Face, and verify it."""
    _check_options(to, license, push, dry_run)
    place, model = find_source(source, out_dir, step, to)
    if to is not Format.hugging_face:
        export_language_model(model, out_dir, to)
        print_line(f"{out_dir}: the language model of {place}, in the format of {to}")
        return
    sizes = export_model(source, place, model, out_dir, license, write=not dry_run)
    if dry_run:
        for name, size in sizes.items():
            print_line(f"{size:>14,} {name}")
        target = f" and uploaded to {push}" if push else ""
        total = f"{sum(sizes.values()):,} bytes in {len(sizes)} files"
        print_line(f"{out_dir}: {total} would be written{target}. Nothing was written")
        return
    print_line(f"{out_dir}: the model of {place}, checksums verified")
    if push:
        print_line(f"{upload(out_dir, sizes, push)}: uploaded")


def _check_options(to: Format, license: str | None, push: str | None, dry_run: bool) -> None:
    """Raise UserError for options that are wrong, before anything is read."""
    from ma2mba.model.hf.card import require_license

    if to is not Format.hugging_face and (license or push or dry_run):
        raise UserError(f"--format {to}: takes no --license, --push or --dry-run. Remove these options")
    require_license(license)
    if push is not None:
        require_target(push, token=not dry_run)


def export_model(
    source: Path, place: Path, model: Path, out_dir: Path, license: str | None = None, *, write: bool = True
) -> dict[str, int]:
    """Write the model folder `model` to `out_dir` in the present format. Return the size of each file.

    Raises UserError if a checksum differs, and for NaN and infinite weights.
    """
    from ma2mba.model.pretrained import copied_content, copy_model, open_model
    from ma2mba.training.checkpoint.card_facts import facts_of_checkpoint

    opened = open_model(model)
    facts = None if place == model else facts_of_checkpoint(source, place).with_license(license)
    content = copied_content(opened, facts, license)
    if write:
        copy_model(opened, content, out_dir)
    return content.sizes


def export_language_model(model: Path, out_dir: Path, to: Format) -> None:
    """Write the language model of a model folder, or one alone, in a published format."""
    from ma2mba.model import published

    with writing(out_dir):
        published.export_language_model(model, out_dir, to)


def find_source(source: Path, out_dir: Path, step: int | None, to: Format = Format.hugging_face) -> tuple[Path, Path]:
    """Return the checkpoint, or the model folder, that `source` and `step` mean, and its model folder.

    Raises UserError if `out_dir` is a symbolic link or not empty, and if there is no such model. For a published format
    `source` may hold a language model alone.
    """
    from ma2mba.training.checkpoint.folder import CHECKPOINTS

    if not source.exists():
        raise UserError(f"{source}: does not exist. Give the folder of a run or of a model")
    refuse_link(out_dir)
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise UserError(f"{out_dir}: exists and is not empty. Choose another --out or remove it")
    if out_dir.resolve().is_relative_to((source / CHECKPOINTS).resolve()):
        raise UserError(f"{out_dir}: lies within the checkpoints of the run. Choose another --out")
    return _find(source, step, to)


def _find(source: Path, step: int | None, to: Format) -> tuple[Path, Path]:
    """As `find_source`, without a look at the place to write."""
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
