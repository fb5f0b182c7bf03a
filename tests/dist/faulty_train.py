"""launch/train.py with one fault: MA2MBA_TEST_FAULT=raise|hang|nan|slow|save|disk|full:RANK:STEP.

The fault occurs in that rank and step, in forward. From there on, a slow rank takes CHUNK_SECONDS for every chunk, and
writes a file "slow".
With "save", the save after that step takes SAVE_SECONDS more, in its middle; with "disk", the disk fills in its middle.
With "full", the disk is full when that step is reported.
"""

import errno
import io
import os
import runpy
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from ma2mba.training import engine as deepspeed_engine  # noqa: E402
from ma2mba.training import streaming  # noqa: E402
from ma2mba.training.checkpoint import folder as checkpoint  # noqa: E402
from ma2mba.training.faults.activity import Activity  # noqa: E402
from ma2mba.training.metrics import Metrics  # noqa: E402

CHUNK_SECONDS = 2.0
SAVE_SECONDS = 5.0
KIND, RANK, STEP = os.environ["MA2MBA_TEST_FAULT"].split(":")
sound = deepspeed_engine.Engine.forward
begin_step = Activity.begin_step
write_rank = checkpoint.write_rank
add = Metrics.add


class Now:
    """The step in progress, from 1."""

    step = 0


def noted(activity, step, tokens):
    Now.step = step
    begin_step(activity, step, tokens)


def faulty(engine, batch, loss_scale, stop_points):
    if KIND in ("save", "disk", "full") or Now.step != int(STEP) or engine.world.rank != int(RANK):
        return sound(engine, batch, loss_scale, stop_points)
    if KIND == "raise":
        raise ArithmeticError("the fault of this test")
    if KIND == "hang":
        time.sleep(600)
    if KIND == "slow":
        get = streaming.Chunks.__getitem__
        streaming.Chunks.__getitem__ = lambda chunks, i: (time.sleep(CHUNK_SECONDS), get(chunks, i))[1]
        Path("slow").touch()
        return sound(engine, batch, loss_scale, stop_points)
    return sound(engine, batch, loss_scale * float("nan"), stop_points)


def slow_save(temporary, rank, state):
    mark = Path("save")
    if (rank, temporary.name) == (int(RANK), checkpoint.temporary_folder(Path(), int(STEP)).name) and not mark.exists():
        mark.touch()
        time.sleep(SAVE_SECONDS)
    write_rank(temporary, rank, state)


def save_on_a_full_disk(temporary, rank, state):
    if (rank, temporary.name) == (int(RANK), checkpoint.temporary_folder(Path(), int(STEP)).name):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    write_rank(temporary, rank, state)


def on_a_full_disk(metrics, step, result, waited):
    if step == int(STEP):
        metrics._file = io.TextIOWrapper(io.FileIO("/dev/full", "w"))
    add(metrics, step, result, waited)


Activity.begin_step = noted
deepspeed_engine.Engine.forward = faulty
if KIND == "save":
    checkpoint.write_rank = slow_save
if KIND == "disk":
    checkpoint.write_rank = save_on_a_full_disk
if KIND == "full":
    Metrics.add = on_a_full_disk
sys.argv[0] = str(ROOT / "launch" / "train.py")
runpy.run_path(sys.argv[0], run_name="__main__")
