"""The report of a demo or an experiment: one JSON file and one plot, from run folders and evaluation results."""

import json
import os
import platform
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ma2mba.files import atomic_path, atomic_write
from ma2mba.plots import draw
from ma2mba.text import read_jsonl, read_yaml

Report = dict[str, Any]


def build_report(
    model: Path,
    results: Mapping[str, Mapping[str, Any]],
    runs: Mapping[str, Path],
    seconds: Mapping[str, float],
    needles: Mapping[str, Any],
) -> Report:
    """Return a report.

    `results` maps a frame sampling ("1fps", "8", ...) to the result of `evaluate` on the needle task, `runs` maps a
    stage's name to its run folder, `seconds` maps a step of the work to its duration, `needles` is a `needle_grid`.
    """
    accuracies = {frames: result["tasks"]["needle"]["accuracy"] for frames, result in results.items()}
    return {
        "needle_accuracy_1fps": accuracies.get("1fps"),
        "needle_accuracy_8_frames": accuracies.get("8"),
        "chance": next(iter(results.values()))["tasks"]["needle"]["chance"],
        "questions": next(iter(results.values()))["tasks"]["needle"]["n"],
        "model": str(model),
        "accuracy_by_frames": accuracies,
        "needle_grid": dict(needles),
        "loss_curves": {stage: curve(run, "loss") for stage, run in runs.items()},
        "tokens_per_second": {stage: median(run, "tokens_per_second") for stage, run in runs.items()},
        "recipes": {stage: _recipe(run) for stage, run in runs.items()},
        "seconds": dict(seconds),
        "machine": machine(),
    }


def write_report(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write report.json and report.png to `folder`, each whole or not at all; return their paths."""
    numbers, picture = folder / "report.json", folder / "report.png"
    with atomic_write(numbers) as file:
        json.dump(report, file, indent=1)
        file.write("\n")
    with atomic_path(picture) as temporary:
        draw(report, temporary)
    return numbers, picture


def curve(run: Path, key: str) -> dict[str, list[float]]:
    """Return a metric over a run's steps, {"step": [...], key: [...]}: the later value of a step that ran twice."""
    values = {record["step"]: record[key] for record in read_jsonl(run / "metrics.jsonl") if key in record}
    return {"step": sorted(values), key: [values[step] for step in sorted(values)]}


def median(run: Path, key: str) -> float | None:
    """Return the median of a metric over a run's steps, None without a step."""
    values = curve(run, key)[key]
    return statistics.median(values) if values else None


def machine() -> dict[str, Any]:
    """Return the machine that the numbers were measured on."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"cpu": cpu_model(), "cores": os.cpu_count(), "gpus": gpus, "torch": torch.__version__}


def cpu_model() -> str:
    """Return the name of the CPU, from /proc/cpuinfo where it exists."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _recipe(run: Path) -> Any:
    return read_yaml(run / "recipe.yaml")
