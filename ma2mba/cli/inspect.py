"""`ma2mba inspect`: what a shard, run or model folder holds."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ma2mba.cli.output import Json, out, print_json, readable
from ma2mba.errors import UserError
from ma2mba.files import inside
from ma2mba.terminal import one_line
from ma2mba.text import read_jsonl, read_yaml

Facts = dict[str, Any]


def inspect(folder: Annotated[Path, typer.Argument(help="Shard, run or model folder.")], as_json: Json = False) -> None:
    """Show what a folder holds."""
    facts = describe(folder)
    if as_json:
        print_json(facts)
        return
    table = Table("", one_line(str(folder)), title=f"{facts['kind']} folder", title_justify="left")
    for key, value in facts.items():
        table.add_row(key.replace("_", " "), readable(value))
    out.print(table)


def describe(folder: Path) -> Facts:
    """Return the facts of a folder; `kind` is shard, run or model.

    Raises UserError for any other folder and for a damaged one.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: this folder does not exist. Give a shard, run or model folder")
    if (folder / "manifest.json").is_file():
        return describe_shards(folder)
    if (folder / "checkpoints").is_dir() or (folder / "metrics.jsonl").is_file():
        return describe_run(folder)
    if (folder / "checksums.json").is_file() or (folder / "config.json").is_file():
        return describe_model(folder)
    raise UserError(
        f"{folder}: neither a shard folder (manifest.json), nor a run folder (checkpoints/), nor a model folder "
        "(config.json). Give one of these"
    )


def describe_shards(folder: Path) -> Facts:
    from ma2mba.shards.reader import ShardReader

    reader = ShardReader(folder)
    manifest = reader.manifest
    return {
        "kind": "shard",
        "samples": manifest.samples,
        "rejected": reader.rejected,
        "frames": manifest.frames,
        "text_tokens": manifest.tokens,
        "hours_of_video": round(sum(row.duration for row in reader.rows) / 3600, 3),
        "image_size": manifest.image_size,
        "frames_per_second": manifest.fps,
        "payload": manifest.kind,
        "bytes": sum(file.bytes for file in manifest.files),
        "files": len(manifest.files),
        "format_version": manifest.format_version,
    }


def describe_run(folder: Path) -> Facts:
    from ma2mba.training.checkpoint.folder import find_checkpoint, steps_in

    checkpoints = [path.name for path in steps_in(inside(folder, "checkpoints", folder)).values()]
    path = inside(folder, "metrics.jsonl", folder)
    step, loss = 0, math.nan
    for record in read_jsonl(path):
        if "loss" in record:
            step, loss = record.get("step", 0), record["loss"]
    if not (type(step) is int and 0 <= step < 1 << 53) or not _is_number(loss):
        raise UserError(f"{path}: its last step or loss is not a number. Copy the file again, or remove it")
    return {
        "kind": "run",
        "stage": _stage(folder),
        "steps": step,
        "loss": float(loss) if math.isfinite(loss) else None,
        "checkpoints": checkpoints,
        "latest": find_checkpoint(folder).name if checkpoints else "none",
    }


def describe_model(folder: Path) -> Facts:
    from ma2mba.model.pretrained import open_model

    model = open_model(folder)
    parts: dict[str, int] = {}
    for name, tensor in model.weights.tensors.items():
        part = name.split(".", 1)[0]
        parts[part] = parts.get(part, 0) + math.prod(tensor.shape)
    language = model.config.language_model
    return {
        "kind": "model",
        "architecture": model.config.architecture,
        "format_version": model.format_version,
        "parameters": sum(parts.values()),
        "parameters_by_part": parts,
        "dtype": sorted({tensor.dtype for tensor in model.weights.tensors.values()}),
        "layers": language.n_layer,
        "width": language.d_model,
        "vocabulary": language.vocab_size,
        "image_size": model.config.image_size,
        "tokens_per_frame": model.config.tokens_per_frame,
        "checksums": "right" if model.signed else "none: transformers saved this folder",
    }


def _is_number(value: Any) -> bool:
    """Return True for a float, NaN included, and for an int that a float can hold."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 53)


def _stage(run: Path) -> str:
    """Return the stage that a run's recipe.yaml names, "unknown" if the file is missing or empty."""
    path = inside(run, "recipe.yaml", run)
    values = read_yaml(path) if path.exists() else None
    stage = values.get("stage", "unknown") if isinstance(values, dict) else values or "unknown"
    if not isinstance(stage, str) or not isinstance(values, dict | None):
        raise UserError(f"{path}: not the recipe of a run. Start the run again, which writes it, or remove it")
    return stage
