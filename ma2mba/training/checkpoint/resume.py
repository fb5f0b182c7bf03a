"""Find the checkpoint to resume from, as the recipe's `resume` asks: auto, none, or a folder."""

from pathlib import Path

from ma2mba.errors import UserError
from ma2mba.files import inside
from ma2mba.text import read_jsonl, read_yaml
from ma2mba.training.checkpoint.folder import (
    CHECKPOINTS,
    LATEST,
    Start,
    check_run_folder,
    is_complete,
    latest,
    read,
    steps_in,
    unfinished_in,
)
from ma2mba.training.recipe.schema import Recipe


def find_start(recipe: Recipe, *, verify: bool = True) -> Start | None:
    """Return the checkpoint that `resume` asks for, None for a new run.

    auto      the run's latest checkpoint; None if the run has none yet
    none      None; the run must not have a checkpoint
    a folder  that checkpoint, or the latest checkpoint of that run

    Without `verify` only the sizes of its files are compared: another rank reads every byte.
    Raise UserError if the checkpoint is missing, incomplete or damaged, if the run has a later checkpoint than the
    given folder, or if the run's checkpoints were removed.
    """
    run = recipe.run_folder
    check_run_folder(run)
    if recipe.resume not in ("auto", "none"):
        return _start_from(Path(recipe.resume), run, verify)
    newest = latest(run) or _newest_complete(run / CHECKPOINTS)
    if recipe.resume == "none":
        if newest:
            raise UserError(f"{run}: already has checkpoints. Set run to another folder, or use resume=auto to resume")
        return None
    if newest:
        return read(newest, hashes=verify)
    _require_new(run)
    return None


def _start_from(folder: Path, run: Path, verify: bool) -> Start:
    if not folder.is_dir():
        raise UserError(f"resume: {folder} does not exist. Give a checkpoint folder, a run folder, auto or none")
    start = read(latest(folder) or folder, hashes=verify)
    newest = latest(run)
    if newest and is_complete(newest) and read(newest).state.step > start.state.step:
        raise UserError(
            f"resume: {run} already continues to {newest.name}. To branch off {folder}, set run to a new folder"
        )
    return start


def _newest_complete(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a run without `latest`: it was killed right after its first save."""
    checkpoints = list(steps_in(folder).values())
    newest = next((checkpoint for checkpoint in reversed(checkpoints) if is_complete(checkpoint)), None)
    if checkpoints and not newest:
        raise UserError(
            f"{folder}: has no file {LATEST}, and none of its checkpoints is complete. Set run to another folder"
        )
    return newest


def _killed_in_first_save(folder: Path, steps: int, every: int) -> bool:
    """Return True if a run may have been killed while its first checkpoint was written, and steps went on meanwhile.

    The second save begins when the first one is complete.
    """
    return steps <= 2 * every and any(step <= every for step in unfinished_in(folder))


def _require_new(run: Path) -> None:
    """Raise UserError if a run without checkpoints must have had one: it has taken steps after its first save."""
    path = inside(run, "recipe.yaml", run)
    if not path.exists():
        return
    every = read_yaml(path)
    for key in ("checkpoint", "every"):
        every = every.get(key) if isinstance(every, dict) else None
    taken = [record.get("step", 0) for record in read_jsonl(inside(run, "metrics.jsonl", run))]
    if not all(isinstance(value, int) for value in (every, *taken)):
        raise UserError(f"{run}: damaged (checkpoint.every or a step is not a number). Set run to another folder")
    steps = max(taken, default=0)
    if steps > every and not _killed_in_first_save(run / CHECKPOINTS, steps, every):
        raise UserError(
            f"{run}: has taken {steps} steps and saves every {every} steps, but its checkpoints are missing. Restore "
            "them, set run to another folder, or use resume=none to start again from the beginning"
        )
