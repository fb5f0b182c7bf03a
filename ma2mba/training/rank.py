"""Train one stage as one rank: deepspeed launch/train.py RECIPE [key=value ...]

RECIPE is a YAML file, or the name of a recipe that comes with the package. Paths in the recipe count from the recipe's
folder, paths in key=value from the current directory.
Exit codes: 0 done, or stopped by a signal and saved; 1 a rank failed; 2 the input is wrong, as the message explains;
3 a step took far too long.
"""

import argparse
import logging
import os
import socket
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext

from ma2mba.errors import UserError
from ma2mba.terminal import Arguments, Terminal, guard_reports, log_to_stderr
from ma2mba.training.recipe.loading import load_recipe
from ma2mba.training.recipe.schema import Recipe
from ma2mba.training.start_clock import StartClock, command_began

RANK, LOCAL_RANK = int(os.environ.get("RANK", 0)), int(os.environ.get("LOCAL_RANK", 0))
HEAD_START_SECONDS = 60.0
"""How long a rank waits for the first rank of its node to report an error: ranks do not start at the same moment."""


def main() -> int:
    """Train as the command line says, and return the exit code."""
    parser = Arguments(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a YAML file, or a name: stage1, stage1_5 or stage2")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="override keys of the recipe, such as data=shards/stage1 trainable.vision=4e-6",
    )
    parser.add_argument("--json", action="store_true", help="print every line of metrics.jsonl on stdout as well")
    parser.add_argument("--verbose", action="store_true", help="show what is decided, and why")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    return train_stage(arguments.recipe, arguments.overrides, verbose=arguments.verbose, echo=arguments.json)


def train_stage(recipe: str, overrides: Sequence[str], *, verbose: bool = False, echo: bool = False) -> int:
    """Train one stage in this process, as the rank that the environment names; return the exit code.

    With `echo`, print every line of metrics.jsonl on stdout as well.
    """
    log_to_stderr()
    guard_reports()
    level = logging.DEBUG if verbose else logging.INFO
    logging.getLogger("ma2mba").setLevel(level if RANK == 0 else logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's calls
    warnings.filterwarnings("ignore", "Attempting to run cuBLAS, but there was no current CUDA context")
    try:
        run(load_recipe(recipe, overrides), echo)
    except UserError as error:
        return refuse(error)
    return 0


def run(recipe: Recipe, echo: bool = False) -> None:
    """Build the job and train. Raise UserError: before the processes join, on the first rank of every host at least."""
    clock = StartClock()
    clock.enter("launch", command_began())
    clock.enter("imports")
    # Import these here: they take seconds, and a wrong recipe must be reported before.
    from ma2mba.training import engine as processes
    from ma2mba.training.faults import failures
    from ma2mba.training.faults.activity import Activity
    from ma2mba.training.faults.guard import guard
    from ma2mba.training.job import build
    from ma2mba.training.kernel_check import check_operations
    from ma2mba.training.loop import train
    from ma2mba.training.opening import open_engine, open_loader, open_metrics
    from ma2mba.training.run_lock import lock_run
    from ma2mba.training.world import World

    with lock_run(recipe.run_folder) if RANK == 0 else nullcontext() as lock:
        job = build(recipe, World.from_environment())
        if job.first_step >= job.steps:
            say(f"{recipe.run}: is finished ({job.first_step} steps), nothing to do")
            return
        if RANK == 0:
            failures.clear(recipe.run_folder)
        clock.enter("processes")
        processes.start_processes(job.world)
        activity = Activity()
        with open_loader(job) as loader, guard(job, activity, lock.release if lock else None):
            clock.enter("kernels")
            check_operations(job.world.device, job.model)
            clock.enter("engine")
            engine = open_engine(job)
            clock.enter("first step")
            clock.join(job.clock)
            with open_metrics(job, clock, echo) if RANK == 0 else nullcontext() as metrics:
                train(job, engine, loader, metrics, activity)
        processes.stop_processes()


def say(text: str) -> None:
    """Print on rank 0."""
    if RANK == 0:
        Terminal(stderr=True).print(text)


def refuse(error: UserError) -> int:
    """Print the error and return the exit code. Before the processes join, only one rank of each node prints."""
    joined = "torch" in sys.modules and sys.modules["torch"].distributed.is_initialized()
    if LOCAL_RANK > 0 and not joined:
        # When the node's first rank ends, the launcher ends this one. It wakes up only if it alone has an error.
        time.sleep(HEAD_START_SECONDS)
    Terminal(stderr=True).error(f"rank {RANK} on {socket.gethostname()}: {error}" if RANK else str(error))
    return 2


if __name__ == "__main__":
    sys.exit(main())
