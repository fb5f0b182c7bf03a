"""Which checkpoint a run goes on from, as `resume` asks: auto, none, or a folder."""

import json
from pathlib import Path

import yaml

from ma2mba.errors import UserError
from ma2mba.training.checkpoint.folder import CHECKPOINTS, LATEST, TAG, Start, is_whole, latest, read
from ma2mba.training.recipe.schema import Recipe


def find_start(recipe: Recipe) -> Start | None:
    """What `resume` asks for: auto (the run's latest, None for a new run), none (the run must be new), or a folder.

    The folder is a checkpoint's or a run's. Raises UserError when it is missing or not whole to the last byte, when the
    run has gone on from it already, and when checkpoints are missing that must have been there.
    """
    run = recipe.run_folder
    if recipe.resume not in ("auto", "none"):
        return _start_from(Path(recipe.resume), run)
    newest = latest(run) or _unnamed(run / CHECKPOINTS)
    if recipe.resume == "none":
        if newest:
            raise UserError(f"{run}: has checkpoints already; take another run folder, or resume=auto to go on")
        return None
    if newest:
        return read(newest, hashes=True)
    _refuse_lost(run)
    return None


def _start_from(folder: Path, run: Path) -> Start:
    if not folder.is_dir():
        raise UserError(f"resume: {folder} does not exist; name a checkpoint or run folder, auto or none")
    start = read(latest(folder) or folder, hashes=True)
    newest = latest(run)
    if newest and is_whole(newest) and read(newest).state.step > start.state.step:
        raise UserError(f"resume: {run} has gone on to {newest.name}; to branch off {folder}, set run to a new folder")
    return start


def _unnamed(folder: Path) -> Path | None:
    """The newest whole checkpoint where no `latest` names one: the run was killed right after its first save."""
    found = {int(match[1]): path for path in folder.glob("step-*") if (match := TAG.fullmatch(path.name))}
    whole = next((found[step] for step in sorted(found, reverse=True) if is_whole(found[step])), None)
    if found and not whole:
        raise UserError(f"{folder}: has checkpoints, but no file {LATEST} and none is whole; take another run folder")
    return whole


def _refuse_lost(run: Path) -> None:
    """A run that has taken steps after its first save had a checkpoint; one that was killed before begins again."""
    try:
        every = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))["checkpoint"]["every"]
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return
    steps = max(map(_step, lines), default=0)
    if steps > every:
        raise UserError(
            f"{run}: has taken {steps} steps and saved after every {every}, but its checkpoints are gone; put them "
            "back, take another run folder, or resume=none to begin again"
        )


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):  # the last one may be cut off
        return 0
