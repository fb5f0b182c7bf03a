"""`ma2mba inspect`: what a shard, run or model folder holds."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ma2mba.cli.output import Json, out, print_json, readable
from ma2mba.errors import UserError
from ma2mba.files import read_jsonl
from ma2mba.terminal import one_line
from ma2mba.text import read_yaml

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
    if (folder / "checksums.json").is_file():
        return describe_model(folder)
    raise UserError(
        f"{folder}: neither a shard folder (manifest.json), nor a run folder (checkpoints/), nor a model folder "
        "(checksums.json). Give one of these"
    )


def describe_shards(folder: Path) -> Facts:
    from ma2mba.shards.reader import ShardReader

    reader = ShardReader(folder)
    manifest = reader.manifest
    rejects = folder / "rejects.jsonl"
    return {
        "kind": "shard",
        "samples": manifest.samples,
        "rejected": _lines(rejects),
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
    from ma2mba.training.checkpoint.folder import find_checkpoint

    checkpoints = sorted(path.name for path in (folder / "checkpoints").glob("step-*"))
    records = read_jsonl(folder / "metrics.jsonl")
    last: Facts = next((record for record in reversed(records) if "loss" in record), {})
    loss = float(last.get("loss", math.nan))
    return {
        "kind": "run",
        "stage": _recipe(folder).get("stage", "unknown"),
        "steps": last.get("step", 0),
        "loss": loss if math.isfinite(loss) else None,
        "checkpoints": checkpoints,
        "latest": find_checkpoint(folder).name if checkpoints else "none",
    }


def describe_model(folder: Path) -> Facts:
    from safetensors import safe_open

    from ma2mba.model.pretrained import read_config, verify_model

    verify_model(folder)
    config = read_config(folder)
    parts: dict[str, int] = {}
    dtypes = set()
    with safe_open(folder / "model.safetensors", framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 (a safe_open is not a mapping)
            piece = tensors.get_slice(name)
            size = 1
            for length in piece.get_shape():
                size *= length
            part = name.split(".", 1)[0]
            parts[part] = parts.get(part, 0) + size
            dtypes.add(piece.get_dtype())
    language = config.language_model
    return {
        "kind": "model",
        "architecture": config.architecture,
        "parameters": sum(parts.values()),
        "parameters_by_part": parts,
        "dtype": sorted(dtypes),
        "layers": language.n_layer,
        "width": language.d_model,
        "vocabulary": language.vocab_size,
        "image_size": config.image_size,
        "tokens_per_frame": config.tokens_per_frame,
        "checksums": "right",
    }


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0


def _recipe(run: Path) -> Facts:
    """Return a run's recipe.yaml, {} if it is missing or empty."""
    path = run / "recipe.yaml"
    values = read_yaml(path) if path.is_file() else None
    return values if isinstance(values, dict) else {}
