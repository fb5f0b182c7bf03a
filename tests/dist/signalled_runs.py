"""many_runs.py with a signal in each run: MA2MBA_TEST_SIGNAL=RANK:STEP:PHASE,... with one entry a run, "-" for none.

The rank receives SIGUSR1 when it asks for a chunk in the middle of that phase, in that step or later. It writes the
step to a file "signalled-RUN".
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ma2mba.training import streaming
from ma2mba.training.faults.activity import Activity
from tests.dist import many_runs

PLACES = iter(os.environ["MA2MBA_TEST_SIGNAL"].split(","))
MIDDLE = {"forward": 2, "backward": 1}
"""The chunk of a phase at which a rank is signalled. Backward does not ask for the last chunk again."""
build = many_runs.build
get = streaming.Chunks.__getitem__
begin_micro_batch = Activity.begin_micro_batch


class Place:
    """Where the run in progress is signalled, and what this rank does."""

    run, here, step, phase = "", False, -1, ""
    activity, chunks = None, 0


def build_next(recipe, world):
    place = next(PLACES)
    Place.run, Place.here = recipe.run_folder.name, False
    if place != "-":
        rank, step, Place.phase = place.split(":")
        Place.here, Place.step = world.rank == int(rank), int(step)
    return build(recipe, world)


def begin(activity, batch):
    Place.activity, Place.chunks = activity if Place.here else None, 0
    begin_micro_batch(activity, batch)


def chunk(chunks, i):
    activity = Place.activity
    if activity and activity.step >= Place.step and activity.phase == Place.phase:
        Place.chunks += 1
        if Place.chunks == MIDDLE[Place.phase]:
            Place.here, Place.activity = False, None
            Path(f"signalled-{Place.run}").write_text(str(activity.step))
            os.kill(os.getpid(), signal.SIGUSR1)
    return get(chunks, i)


many_runs.build = build_next
Activity.begin_micro_batch = begin
streaming.Chunks.__getitem__ = chunk
many_runs.main()
