"""Watched workers run any work: results and errors come back, and a stalled item is given up by name."""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import pytest

from ma2mba.video.errors import MediaError
from ma2mba.video.pool import Pool, Task, run_tasks


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


def identify(task, begin, beat):
    """Send the items in blocks, and return the worker's process; "crash" ends the process."""
    for i, item in enumerate(task.items):
        begin(i)
        if item == "crash" and i not in task.given_up:
            os.kill(os.getpid(), signal.SIGSEGV)
        if item == "leave" and i not in task.given_up:
            os._exit(3)
        beat(item)
    begin(len(task.items))
    return os.getpid()


def test_workers_stay_between_runs_and_are_replaced_after_a_crash_or_an_error():
    blocks, pids = [], []

    def run(*items):
        for kind, _, value in pool.events(deque([Task(0, items)])):
            if kind == "block":
                blocks.append(value)
            elif kind == "result":
                pids.append(value)

    with Pool(identify, 1, 1 << 30) as pool:
        run("a", "b")
        run("c")
        assert pids[0] == pids[1]
        run("d", "crash", "leave", "e")
        assert pids[2] != pids[1]
        assert blocks == ["a", "b", "c", "d", "d", "crash", "d", "crash", "leave", "e"]
        with pytest.raises(ZeroDivisionError):
            pool.run([Task(0, ["f"])], lambda _, pid: 1 // 0)
        run("g")
        os.kill(pids[-1], signal.SIGKILL)
        pool._workers[0].process.wait()
        run("h")
        assert len(set(pids)) == 4
    with pytest.raises(ProcessLookupError):
        os.kill(pids[-1], 0)


def test_a_caller_without_a_main_guard_and_a_folder_with_modules_run_nothing_twice(tmp_path):
    (tmp_path / "pickle.py").write_text("import pathlib; pathlib.Path('ran').touch()")
    script = """
from ma2mba.video.pool import Task, run_tasks
from tests.unit.video.test_pool import square
print("once")
run_tasks(square, [Task(0, [3])], 1, 1 << 30, lambda _: None, lambda _, result: print(result))
"""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/script.py").write_text(script)
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, tmp_path / "bin/script.py"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    assert done.stdout == "once\n[9]\n"
    assert not (tmp_path / "ran").exists()
