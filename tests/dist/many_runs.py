"""Train one recipe several times in the same processes: [deepspeed] many_runs.py RECIPE OVERRIDES.json

OVERRIDES has one list of key=value for each run. Users start launch/train.py; this script imports only once.
"""

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ma2mba.training import engine as processes
from ma2mba.training.faults.activity import Activity
from ma2mba.training.job import build
from ma2mba.training.loop import train
from ma2mba.training.opening import open_engine, open_loader, open_metrics
from ma2mba.training.recipe.loading import load_recipe
from ma2mba.training.world import World


def main() -> None:
    recipe, overrides = (argument for argument in sys.argv[1:] if not argument.startswith("--local_rank"))
    world = World.from_environment(os.environ)
    processes.start_processes(world)
    for changes in json.loads(Path(overrides).read_text()):
        job = build(load_recipe(recipe, changes), world)
        engine = open_engine(job)
        with open_loader(job) as loader, open_metrics(job) if world.rank == 0 else nullcontext() as metrics:
            train(job, engine, loader, metrics, Activity())
        engine.inner.destroy()
    processes.stop_processes()


if __name__ == "__main__":
    main()
