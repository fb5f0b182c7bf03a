"""Train one stage: deepspeed launch/train.py RECIPE.yaml [key=value ...]

Exit codes: 0 done, 1 a rank failed, 2 something for the user to put right (said on stderr), 3 a step took far too long.
"""

import argparse
import logging
import os
import socket
import sys
import time
import warnings
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ma2mba.errors import UserError
from ma2mba.training.recipe.loading import load_recipe
from ma2mba.training.recipe.schema import Recipe

RANK, LOCAL_RANK = int(os.environ.get("RANK", 0)), int(os.environ.get("LOCAL_RANK", 0))
HEAD_START_SECONDS = 60.0
"""How far ranks that start together may be apart: how long one waits for the first of its node to say what is wrong."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a YAML file, as launch/recipes/stage1.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as data=shards/stage1 trainable.vision=4e-6")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("ma2mba").setLevel(logging.INFO if RANK == 0 else logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's calls
    warnings.filterwarnings("ignore", "Attempting to run cuBLAS, but there was no current CUDA context")
    try:
        run(load_recipe(arguments.recipe, arguments.overrides))
    except UserError as error:
        return refuse(error)
    return 0


def run(recipe: Recipe) -> None:
    """Build, train, close. Raises UserError; until the processes join, the same one on every rank."""
    # Here and not above: these imports take seconds, and a wrong recipe is refused before them.
    from ma2mba.training import engine as processes
    from ma2mba.training.faults import failures
    from ma2mba.training.faults.activity import Activity
    from ma2mba.training.faults.guard import guard
    from ma2mba.training.job import build
    from ma2mba.training.kernel_check import check_operations
    from ma2mba.training.loop import train
    from ma2mba.training.opening import open_engine, open_loader, open_metrics
    from ma2mba.training.world import World

    job = build(recipe, World.from_environment())
    if job.first_step >= job.steps:
        say(f"{recipe.run}: is finished ({job.first_step} steps); nothing to do")
        return
    if RANK == 0:
        failures.clear(recipe.run_folder)
    processes.start_processes(job.world)
    activity = Activity()
    with open_loader(job) as loader, guard(job, activity):
        check_operations(job.world.device, job.model)
        engine = open_engine(job)
        with open_metrics(job) if RANK == 0 else nullcontext() as metrics:
            train(job, engine, loader, metrics, activity)
    processes.stop_processes()


def say(text: str) -> None:
    if RANK == 0:
        Console(stderr=True).print(text, markup=False, highlight=False)


def refuse(error: UserError) -> int:
    """Print the error: once on each node, until the processes have joined; then every rank prints what it met."""
    joined = "torch" in sys.modules and sys.modules["torch"].distributed.is_initialized()
    if LOCAL_RANK > 0 and not joined:
        # The launcher ends all ranks when one ends, so that this one goes on only if it alone met the error.
        time.sleep(HEAD_START_SECONDS)
    console = Console(stderr=True, soft_wrap=True)
    console.print("error:", style="bold red", end=" ")
    text = f"rank {RANK} on {socket.gethostname()}: {error}" if RANK else str(error)
    console.print(text, markup=False, highlight=False)
    return 2


if __name__ == "__main__":
    sys.exit(main())
