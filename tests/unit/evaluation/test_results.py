"""The report's numbers are those of a computation by hand, and its charts are pictures."""

import json

import numpy as np
import pytest
from PIL import Image

from ma2mba.errors import UserError
from ma2mba.evaluation.answers_file import AnswersFile
from ma2mba.evaluation.bootstrap import interval
from ma2mba.evaluation.paper import published
from ma2mba.evaluation.results import collect, write_report
from ma2mba.evaluation.run_file import RunFile

OPTIONS = {"frames": "1fps", "scoring": "letter", "model": "f" * 32, "questions": "e" * 32, "parts": 2, "dtype": "fp32"}
ABOUT = {"questions": "data", "benchmark": "video-mme", "model": "models/mine"}


def answer(number: int, score: float, **fields) -> dict:
    choice = "A" if score else "B"
    record = {"number": number, "id": f"q{number}", "task": "count", "duration_group": "short", "video": f"v{number}"}
    record |= {"answer": "x", "prediction": choice, "choice": choice, "parser": "letter", "score": score}
    return (
        record | {"correct": bool(score), "chance": 0.25, "frames": 3, "video_seconds": 30.0, "seconds": 1.0} | fields
    )


LONG = {"duration_group": "long", "video_seconds": 3.0}
RECORDS = [
    answer(0, 1.0, video="a"),
    answer(1, 0.0, video="a", task="order", prediction="", choice=None),
    answer(2, 1.0, video="b", **LONG),
    answer(3, 1.0, video="b", **LONG),
    answer(4, 0.0, video="b", prediction="perhaps", choice=None, **LONG),
    answer(5, 0.0, video="c", error="c: damaged") | {"prediction": ""},
]


@pytest.fixture
def folder(tmp_path):
    """A run of two parts: the second one ends with question 5."""
    run = RunFile(OPTIONS, ABOUT, [4, 2])
    run.claim(tmp_path / "run.json")
    for name, records in (("answers-0-of-2.jsonl", RECORDS[3::-1]), ("answers-1-of-2.jsonl", RECORDS[4:])):
        with AnswersFile(tmp_path / name, run.id) as file:
            for record in records:
                file.add(record)
    return tmp_path


def test_the_means_are_those_of_the_answered_questions(folder):
    report = write_report(collect(folder), folder)
    assert json.loads((folder / "report.json").read_text()) == report
    assert (report["n"], report["questions"], report["videos"]) == (5, 6, 2)
    assert report["accuracy"] == pytest.approx(3 / 5)
    assert report["accuracy_if_unreadable_wrong"] == pytest.approx(3 / 6)
    assert (report["unparsed"], report["empty"], report["unreadable"]) == (2, 1, 1)
    assert report["tasks"]["count"]["accuracy"] == pytest.approx(3 / 4)
    assert report["tasks"]["order"]["accuracy"] == 0
    assert report["mean_of_tasks"]["accuracy"] == pytest.approx((3 / 4 + 0) / 2)
    assert {name: group["accuracy"] for name, group in report["lengths"].items()} == {
        "short": pytest.approx(1 / 2),
        "long": pytest.approx(2 / 3),
    }
    assert list(report["lengths"]) == ["short", "long"]
    assert report["ci95"] == list(interval([1, 0, 1, 1, 0], ["a", "a", "b", "b", "b"]))
    assert report["lengths"]["short"]["ci95"] is None, "one video"
    assert report["unreadable_videos"] == [{"video": "c", "questions": 1, "reason": "c: damaged"}]
    assert report["paper"]["accuracy_percent"]["long"] == {"0.7B": 26.8, "1.8B": 31.9, "3.1B": 35.4}
    assert [record["id"] for record in report["records"]] == [f"q{n}" for n in range(6)]
    assert "seconds" not in json.dumps(report["records"])


def test_the_charts_are_drawn(folder):
    write_report(collect(folder), folder)
    for name in ("accuracy.png", "by_length.png", "by_task.png"):
        with Image.open(folder / name) as image:
            pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
        assert (pixels == [66, 99, 235]).all(1).sum() > 1000, f"{name} shows nothing of this model"
    with Image.open(folder / "accuracy.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert (pixels == [97, 110, 124]).all(1).sum() > 10_000, "the bars of the paper's 3.1B are missing"


@pytest.mark.parametrize(
    ("benchmark", "frames", "group", "percent", "note"),
    [
        ("video-mme", "1fps", "all", {"0.7B": 33.1, "1.8B": 40.3, "3.1B": 45.2}, ""),
        ("video-mme", "8", "all", {"3.1B": 41.6}, ""),
        ("video-mme", "9", "short", {"0.7B": 37.4, "1.8B": 49.4, "3.1B": 57.6}, "the paper saw 1 frame per second"),
        ("mvbench", "1fps", "all", {"0.7B": 41.1, "1.8B": 44.4, "3.1B": 48.3}, ""),
        ("longvideobench", "1fps", "all", {"0.7B": 34.0, "1.8B": 38.0, "3.1B": 43.0}, "the validation set"),
        ("activitynet-qa", "1fps", "all", {"0.7B": 43.8, "1.8B": 50.0, "3.1B": 51.7}, "judged by a language model"),
    ],
)
def test_the_papers_results_are_those_of_the_same_frames(benchmark, frames, group, percent, note):
    paper = published(benchmark, frames)
    assert paper
    assert paper.percent[group] == percent
    assert note in paper.note
    assert published("mlvu", frames) is None


def test_odd_names_are_drawn(folder):
    run = RunFile(OPTIONS | {"parts": 1}, ABOUT | {"benchmark": "", "questions": "a$b^{.jsonl" * 9}, [2])
    run.claim(folder / "run.json", fresh=True)
    with AnswersFile(folder / "answers.jsonl", run.id) as file:
        for number, task in enumerate(("$\\frac{$", "\x1b[31m\n" * 40)):
            file.add(answer(number, 1.0, task=task, duration_group=task))
    assert len(write_report(collect(folder), folder)["tasks"]) == 2
    assert (folder / "by_task.png").is_file()


def test_without_length_groups_the_seconds_count(folder):
    run = RunFile(OPTIONS | {"parts": 1}, ABOUT | {"benchmark": ""}, [4])
    run.claim(folder / "run.json", fresh=True)
    with AnswersFile(folder / "answers.jsonl", run.id) as file:
        for number, seconds in enumerate((7300.0, 59.9, 60.0, 0.0)):
            file.add(answer(number, 1.0, video_seconds=seconds, duration_group=""))
    report = write_report(collect(folder), folder)
    assert list(report["lengths"]) == ["under 15 s", "15 s to 1 min", "1 to 3 min", "2 h and longer"]
    assert report["paper"] is None


def test_incomplete_parts_are_said(folder):
    lines = (folder / "answers-0-of-2.jsonl").read_text().splitlines(keepends=True)
    (folder / "answers-0-of-2.jsonl").write_text("".join(lines[:2]))
    (folder / "answers-1-of-2.jsonl").unlink()
    missing = ["part 0/2 has 2 of 4 answers", "part 1/2 has 0 of 2 answers"]
    assert collect(folder).missing() == missing


def test_a_folder_without_a_run_and_a_changed_run_are_refused(folder, tmp_path_factory):
    with pytest.raises(UserError, match=r"run\.json: does not exist"):
        collect(tmp_path_factory.mktemp("empty"))
    path = folder / "run.json"
    path.write_text(path.read_text().replace("1fps", "8"))
    with pytest.raises(UserError, match=r"run\.json: not the options of a run \(its options were changed\)"):
        collect(folder)
    path.write_text("[]")
    with pytest.raises(UserError, match=r"run\.json: not the options of a run"):
        collect(folder)
