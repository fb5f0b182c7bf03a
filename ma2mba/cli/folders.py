"""The three kinds of folder that ma2mba writes: shards, runs, models. Recognised, summarised, exported."""

import math
import shutil
from pathlib import Path
from typing import Any

from ma2mba.errors import UserError
from ma2mba.evaluation.report import read_jsonl
from ma2mba.files import atomic_folder

Facts = dict[str, Any]


def describe(folder: Path) -> Facts:
    """What a folder holds; `kind` is shard, run or model. Raises UserError for anything else and for a damaged one."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a shard, run or model folder")
    if (folder / "manifest.json").is_file():
        return describe_shards(folder)
    if (folder / "checkpoints").is_dir() or (folder / "metrics.jsonl").is_file():
        return describe_run(folder)
    if (folder / "checksums.json").is_file():
        return describe_model(folder)
    raise UserError(
        f"{folder}: neither a shard folder (manifest.json), nor a run folder (checkpoints/), nor a model folder "
        "(checksums.json); give one of these"
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
        "latest": checkpoint_of(folder).name if checkpoints else "none",
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


def checkpoint_of(run: Path, step: int | None = None) -> Path:
    """A run's latest checkpoint, or that of a step, whole. Raises UserError naming the steps that there are."""
    from ma2mba.training.checkpoint.folder import CHECKPOINTS, TAG, latest, read

    folder = run / CHECKPOINTS
    if not folder.is_dir():
        raise UserError(f"{run}: not a run folder (no {CHECKPOINTS}/); give the run= of a training stage")
    steps = {int(match[1]): path for path in folder.iterdir() if (match := TAG.fullmatch(path.name))}
    known = ", ".join(map(str, sorted(steps))) or "none"
    chosen = latest(run) if step is None else steps.get(step)
    if chosen is None:
        what = "finished checkpoint" if step is None else f"checkpoint of step {step}"
        raise UserError(f"{run}: no {what}; train on, or choose --step of those that there are: {known}")
    return read(chosen).folder


def export_model(run: Path, out: Path, step: int | None = None) -> Path:
    """Copy the model of a run's checkpoint to `out` and verify it there; returns the checkpoint's folder.

    Raises UserError when `out` exists and is not empty, when there is no such checkpoint and when a checksum differs.
    """
    from ma2mba.model.pretrained import verify_model

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not empty; choose another --out or remove it")
    checkpoint = checkpoint_of(run, step)
    verify_model(checkpoint / "model")
    with atomic_folder(out) as temporary:
        shutil.copytree(checkpoint / "model", temporary, dirs_exist_ok=True)
        verify_model(temporary)
    return checkpoint


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0


def _recipe(run: Path) -> Facts:
    """{} where there is none, or an empty one."""
    import yaml

    path = run / "recipe.yaml"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML ({error}); start the run again, which writes it, or remove it") from error
    return values if isinstance(values, dict) else {}
