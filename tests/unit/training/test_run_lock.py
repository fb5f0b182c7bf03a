"""Who holds the lock of a run folder, and when a launch takes it over."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from ma2mba.errors import UserError
from ma2mba.training import run_lock
from ma2mba.training.run_lock import Holder, lock_run


@pytest.fixture
def run(tmp_path):
    return tmp_path / "runs" / "stage1"


def left(run: Path, **changes) -> Path:
    """Write the lock file of another process."""
    run.mkdir(parents=True)
    (run / "lock").write_text(Holder.this_process().model_copy(update=changes).model_dump_json())
    return run / "lock"


def is_free(run: Path) -> bool:
    try:
        with lock_run(run):
            return True
    except UserError:
        return False


def test_a_second_launch_is_refused_with_host_process_and_time(run):
    with lock_run(run):
        holder = json.loads((run / "lock").read_text())
        assert (holder["pid"], holder["host"]) == (os.getpid(), os.uname().nodename)
        match = rf"^{run}: process {os.getpid()} on {holder['host']} has trained here since 20[^\n]*$"
        with pytest.raises(UserError, match=match):
            lock_run(run).__enter__()
        assert json.loads((run / "lock").read_text()) == holder
    assert is_free(run)


def test_folders_that_stay_empty_are_removed(run, tmp_path):
    with lock_run(run):
        assert (run / "lock").is_file()
    assert list(tmp_path.iterdir()) == []
    with lock_run(run):
        (run / "metrics.jsonl").touch()
    assert [path.name for path in run.iterdir()] == ["metrics.jsonl"]


def test_a_killed_process_leaves_no_lock_behind(run):
    code = f"import os; from pathlib import Path; from ma2mba.training.run_lock import lock_run; run = {str(run)!r}\n"
    code += "with lock_run(Path(run)): os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert (run / "lock").read_text()
    assert is_free(run)


@pytest.mark.parametrize(
    ("changes", "free"),
    [({}, False), ({"started": psutil.Process().create_time() - 60}, True), ({"pid": 2**22 + 1}, True)],
    ids=["alive", "recycled id", "dead"],
)
def test_without_flock_the_process_is_looked_up(run, monkeypatch, changes, free):
    monkeypatch.setattr(run_lock, "_flock", lambda descriptor: None)
    left(run, **changes)
    assert is_free(run) == free


def test_a_process_on_another_host_is_known_by_its_sign_of_life(run, monkeypatch):
    lock = left(run, boot="another", host="node-7")
    stop = threading.Event()
    beat = threading.Thread(target=lambda: [os.utime(lock) for _ in iter(lambda: stop.wait(0.1), True)])
    beat.start()
    try:
        with pytest.raises(UserError, match="on node-7 has trained here since"):
            lock_run(run).__enter__()
    finally:
        stop.set()
        beat.join()
    monkeypatch.setattr(run_lock, "LOST_SECONDS", 1.5)
    began = time.monotonic()
    assert is_free(run)
    assert time.monotonic() - began > 1


def test_an_old_lock_of_another_host_is_taken_over_at_once(run):
    lock = left(run, boot="another")
    os.utime(lock, (time.time() - 200,) * 2)
    began = time.monotonic()
    assert is_free(run)
    assert time.monotonic() - began < 5


def test_the_holder_refreshes_its_lock(run, monkeypatch):
    monkeypatch.setattr(run_lock, "BEAT_SECONDS", 0.05)
    with lock_run(run):
        os.utime(run / "lock", (0, 0))
        until = time.monotonic() + 10
        while (run / "lock").stat().st_mtime < 1 and time.monotonic() < until:
            time.sleep(0.05)
        assert (run / "lock").stat().st_mtime > 1


def test_a_cut_off_lock_file_is_taken_over(run):
    left(run).write_text('{"host": "no')
    assert is_free(run)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/run: cannot be written \(Not a directory\)"):
        lock_run(tmp_path / "file" / "run").__enter__()
    (tmp_path / "lock").symlink_to("elsewhere")
    with pytest.raises(UserError, match="lock: cannot be written"):
        lock_run(tmp_path).__enter__()


def test_checkpoints_that_cannot_be_written_are_refused_at_the_start(tmp_path, monkeypatch):
    def full(*given, dir, **options):
        raise OSError(28, "No space left on device", f"{dir}/tmp1")

    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setattr(run_lock.tempfile, "NamedTemporaryFile", full)
    with pytest.raises(UserError, match=r"checkpoints: cannot be written \(No space left on device\)"):
        lock_run(tmp_path).__enter__()
    assert not (tmp_path / "lock").exists()
