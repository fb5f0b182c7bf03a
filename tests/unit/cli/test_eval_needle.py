"""`ma2mba eval --needle` on real videos with a small model: its report, its pictures, its refusals, and kills."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ma2mba.evaluation.needle_report import picture_path
from ma2mba.video.pictures import read_image
from ma2mba.video.synthetic.movie import plan_movie, write_movie
from ma2mba.video.synthetic.scenes import NEEDLES
from tests.unit.cli import failing_writer

ROOT = Path(__file__).resolve().parents[3]
SECONDS = 300
QUICK = ("--lengths", "4,20", "--depths", "0,0.5,1", "--questions", "8", "--device", "cpu")
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def haystack(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("haystack") / "a.mp4"
    write_movie(plan_movie("a", 30, None, 2, random.Random(0)), path)
    return path


def start(*arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "ma2mba", "eval", "--needle", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def answers(out: Path) -> list[dict]:
    records = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    return [{key: record[key] for key in record if key not in ("seconds", "watch_seconds")} for record in records]


@pytest.mark.parametrize("own", [False, True])
def test_the_report_and_the_pictures(ma2mba, model_folder, haystack, tmp_path, own):
    out, more = tmp_path / "out", ("--haystack", haystack) if own else ()
    code, printed, _ = ma2mba("eval", "--needle", "--model", model_folder, *QUICK, "--out", out, *more)
    assert code == 0
    report = json.loads((out / "report.json").read_text())
    grid = report["needle_grid"]
    assert (grid["lengths_seconds"], grid["depths"]) == ([4, 20], [0.0, 0.5, 1.0])
    assert [len(row) for row in grid["accuracy"]] == [3, 3]
    assert grid["questions"] == [[3, 3, 2], [3, 3, 2]]
    assert grid["chance"] == report["chance"] == 1 / len(NEEDLES)
    assert (report["n"], report["unreadable"]) == (16, 0)
    assert {record["frames"] for record in report["records"]} == {4, 20}
    assert sorted(record["answer"] for record in report["records"]) == sorted(2 * list(NEEDLES))
    assert "4 s" in printed
    assert "by chance 12.5%, 16 questions answered" in printed
    for name in ("needle_grid.png", "needles.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert not (out / "videos").exists()
    for record in report["records"][:3]:
        colour = np.array(NEEDLES[record["answer"]][0])
        picture = read_image(picture_path(out, record["id"])).astype(int)
        assert (abs(picture - colour).max(-1) < 8).mean() > 0.1, "the picture shows the symbol"
    prompts = {record["prompt"] for record in answers(out)}
    assert len(prompts) == 16
    assert all("A. " in prompt and "H. " in prompt for prompt in prompts)


def test_hidden_options_and_kept_videos(ma2mba, model_folder, tmp_path):
    out = tmp_path / "out"
    options = ("--lengths", "5", "--depths", "1", "--questions", "2", "--seed", "3", "--hide-options", "--keep-videos")
    code, printed, _ = ma2mba("eval", "--needle", "--model", model_folder, *options, "--out", out, "--json")
    assert code == 0
    assert json.loads(printed) == json.loads((out / "report.json").read_text())
    assert {record["prompt"] for record in answers(out)} == {"Which symbol appeared?"}
    assert sorted(path.name for path in (out / "videos").iterdir()) == ["5s-000.mp4", "5s-001.mp4"]
    code, _, error = ma2mba("eval", "--needle", "--model", model_folder, *options[:-3], "4", "--out", out)
    assert code == 2
    assert "seed: 3 there, 4 now" in error


@pytest.mark.parametrize("own", [pytest.param(False, marks=pytest.mark.slow), True])
def test_kills_change_nothing(model_folder, haystack, tmp_path, own):
    more = ("--haystack", haystack, "--haystack", haystack) if own else ()
    command = ("--model", model_folder, "--lengths", "4,12,20", "--depths", "0:1:0.25", "--questions", "24", *more)
    command = (*command, "--device", "cpu", "--out")
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    assert start(*command, undisturbed).wait(SECONDS) == 0
    whole = (undisturbed / "answers.jsonl").stat().st_size
    for kill in range(2):
        process, end = start(*command, out), time.monotonic() + SECONDS
        wanted = whole * (kill + 0.5) / 3
        while process.poll() is None and time.monotonic() < end:
            if (out / "answers.jsonl").exists() and (out / "answers.jsonl").stat().st_size > wanted:
                break
            time.sleep(0.002)
        assert process.poll() is None, f"it ended before kill {kill}: {process.communicate()}"
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (out / "report.json").exists()
    assert start(*command, out).wait(SECONDS) == 0
    assert answers(out) == answers(undisturbed)
    for name in ("report.json", "needle_grid.png", "needles.png"):
        assert (out / name).read_bytes() == (undisturbed / name).read_bytes()


def test_the_writers_end_with_a_killed_evaluation(model_folder, tmp_path):
    process = start("--model", model_folder, "--lengths", "600", "--device", "cpu", "--out", tmp_path / "out")
    end = time.monotonic() + SECONDS
    while not (tmp_path / "out/answers.jsonl").exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    assert len(processes_of(process.pid)) > 1
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    while processes_of(process.pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert processes_of(process.pid) == []


def processes_of(session: int) -> list[int]:
    """Return the processes of a session that run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, owner = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(owner) == session and state != "Z":
            found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize(
    ("writer", "problem"),
    [
        (failing_writer.die, "a process that writes toy videos was killed"),
        (failing_writer.find_no_space, "videos: cannot be written (No space left on device)"),
    ],
)
def test_a_video_that_cannot_be_written_stops_the_run(ma2mba, model_folder, tmp_path, monkeypatch, writer, problem):
    out = tmp_path / "out"
    command = ("eval", "--needle", "--model", model_folder, *QUICK, "--out", out)
    with monkeypatch.context() as patched:
        patched.setattr("ma2mba.evaluation.needle.writer.write_video", writer)
        code, _, error = ma2mba(*command)
    assert code == 2
    assert problem in error
    assert (out / "answers.jsonl").read_bytes() == b"", "no question is at fault"
    assert ma2mba(*command)[0] == 0


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--needle", "--lengths", "1m"), "--lengths '1m': '1m' is not a whole number of seconds"),
        (("--needle", "--depths", "0,2"), "--depths '0,2': 2 is out of range"),
        (("--needle", "--questions", "3"), "--questions 3: fewer than the 11 depths"),
        (("--needle", "--task", "a.jsonl"), "--task and --needle: both given"),
        (("--needle", "--subtitles"), "--subtitles and --needle: both given"),
        (("--task", "a.jsonl", "--lengths", "60"), "--lengths: is for --needle"),
        (("--task", "a.jsonl", "--hide-options"), "--hide-options: is for --needle"),
        (("--needle", "--haystack", "none.mp4"), "--haystack none.mp4: no such file"),
        (("--needle", "--haystack", "a.mp4", "--keep-videos"), "--keep-videos: no video is written with --haystack"),
    ],
)
def test_what_is_refused(ma2mba, model_folder, options, problem):
    code, _, error = ma2mba("eval", "--model", model_folder, *options)
    assert code == 2
    assert problem in error


def test_a_short_haystack_is_refused(ma2mba, model_folder, haystack, tmp_path):
    options = ("--needle", "--lengths", "10,31", "--haystack", haystack, "--out", tmp_path / "out")
    code, _, error = ma2mba("eval", "--model", model_folder, *options)
    assert code == 2
    assert f"--haystack {haystack}: lasts 30.0 s, and the longest of --lengths is 31 s" in error
    assert not (tmp_path / "out").exists()
