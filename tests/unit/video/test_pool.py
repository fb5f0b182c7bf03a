"""Watched workers run any work: results and errors come back, and a stalled item is given up by name."""

import time

import pytest

from ma2mba.video.errors import MediaError
from ma2mba.video.pool import Task, run_tasks


def square(task, begin, beat):
    """Return the squares of the items; an item that was given up becomes its reason."""
    results = []
    for i, item in enumerate(task.items):
        begin(i)
        beat()
        if i not in task.given_up and item == "hangs":
            time.sleep(60)
        results.append(task.given_up.get(i) or item**2)
    begin(len(task.items))
    return results


def refuse(task, begin, beat):
    raise MediaError(task.items[0], "the file is empty")


def run(work, items, stall=30.0):
    results, finished = {}, []
    tasks = [Task(number, some) for number, some in enumerate(items)]
    run_tasks(
        work,
        tasks,
        workers=2,
        memory=1 << 30,
        progress=finished.append,
        on_result=lambda task, result: results.update({task.number: result}),
        stall=stall,
    )
    return results, sum(finished)


def test_each_task_returns_its_result():
    assert run(square, [[1, 2], [3]]) == ({0: [1, 4], 1: [9]}, 3)


def test_a_stalled_item_is_given_up():
    assert run(square, [[1, "hangs", 3]], stall=2.0) == ({0: [1, "the decoder made no progress for 2 s", 9]}, 3)


def test_an_error_of_the_work_keeps_its_type():
    with pytest.raises(MediaError, match=r"a\.mp4: the file is empty"):
        run(refuse, [["a.mp4"]])
