"""`ma2mba eval`, killed with SIGKILL (in `make test-slow` ten times) or run by two ranks, gives the report of an
undisturbed run.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest

from tests.unit.video.numbered_video import write

ROOT = Path(__file__).resolve().parents[3]
VIDEOS, EACH = 24, 8
SECONDS = 120
WALL_CLOCK = {"seconds", "watch_seconds"}
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def task_file(tmp_path_factory) -> Path:
    """Questions about videos of 3 to 26 s, in no order; one video is damaged."""
    folder, lines = tmp_path_factory.mktemp("task"), []
    for v in range(VIDEOS):
        write(folder / f"{v}.mkv", [1000 * k for k in range(3 + v)], Fraction(1, 1000), codec="mpeg4", options={})
        for q in range(EACH):
            line = {"id": f"{v}-{q}", "video": f"{v}.mkv", "question": f"what color {q}?", "answer": "ABC"[q % 3]}
            lines.append(line | {"options": ["red star", "a ring", "a cross"], "task": ("needle", "count")[q % 2]})
    (folder / "5.mkv").write_bytes(b"no video")
    random.Random(0).shuffle(lines)
    (folder / "task.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "task.jsonl"


@pytest.fixture(scope="module")
def command(task_file, model_folder) -> list[str]:
    return ["-m", "ma2mba", "eval", "--task", str(task_file), "--model", str(model_folder), "--device", "cpu", "--out"]


@pytest.fixture(scope="module")
def undisturbed(command, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert start([*command, str(out)]).wait(SECONDS) == 0
    return out


def start(arguments: list[str], **environment: str) -> subprocess.Popen:
    """Start Python with these arguments, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def answers(out: Path, name: str = "answers.jsonl") -> list[dict]:
    """Return the records of a file, but for what a clock says, in the order of the questions."""
    records = [json.loads(line) for line in (out / name).read_text().splitlines()]
    for record in records:
        for key in WALL_CLOCK:
            record.pop(key, None)
    return sorted(records, key=lambda record: record["number"])


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_kills_change_nothing(command, undisturbed, tmp_path, kills):
    out, random_ = tmp_path / "out", random.Random(1)
    path, whole = out / "answers.jsonl", size(undisturbed / "answers.jsonl")
    for kill in range(kills):
        process = start([*command, str(out)])
        wanted = whole * (kill + random_.random()) / (kills + 1)
        end = time.monotonic() + SECONDS
        while size(path) < wanted and process.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
        assert process.poll() is None, f"it ended before kill {kill}: {process.communicate()}"
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if kill % 3 == 0:  # as if the kill had come in the middle of a write
            os.truncate(path, size(path) - random_.randrange(1, 60))
    assert not (out / "report.json").exists()
    assert start([*command, str(out)]).wait(SECONDS) == 0
    assert (out / "report.json").read_bytes() == (undisturbed / "report.json").read_bytes()
    assert answers(out) == answers(undisturbed)
    report = json.loads((out / "report.json").read_text())
    assert (report["n"], report["unreadable"]) == ((VIDEOS - 1) * EACH, EACH)


def test_two_ranks_of_torchrun_give_the_report_of_one_process(command, undisturbed, tmp_path):
    out = tmp_path / "out"
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--no-python"]
    process = start([*launch, sys.executable, *command, str(out)])
    _, error = process.communicate(timeout=2 * SECONDS)
    assert process.returncode == 0, error[-3000:]
    both = [record for n in range(2) for record in answers(out, f"answers-{n}-of-2.jsonl")]
    assert len({record["number"] for record in both}) == len(both) == VIDEOS * EACH
    videos = [{record["video"] for record in answers(out, f"answers-{n}-of-2.jsonl")} for n in range(2)]
    assert not videos[0] & videos[1]
    assert (out / "report.json").read_bytes() == (undisturbed / "report.json").read_bytes()


def test_sigterm_keeps_the_answers_and_says_how_to_resume(command, undisturbed, tmp_path):
    out = tmp_path / "out"
    process = start([*command, str(out)], SLURM_PROCID="0", SLURM_NTASKS="1")
    path = out / "answers.jsonl"
    while size(path) < 2000 and process.poll() is None:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGTERM)
    _, error = process.communicate(timeout=SECONDS)
    assert process.returncode == 143, error
    assert f"stopped: {out} has " in error
    assert "Run the same command again to resume" in error
    kept = path.read_bytes()
    second = start([*command, str(out)])
    assert second.wait(SECONDS) == 0
    assert path.read_bytes().startswith(kept)
    assert (out / "report.json").read_bytes() == (undisturbed / "report.json").read_bytes()
