"""Each benchmark from its published files to a report, by the real command line."""

import json

import pytest

from tests.unit.evaluation.published import MAKERS, QUESTIONS


@pytest.mark.parametrize("name", MAKERS)
def test_a_benchmark_is_evaluated(ma2mba, model_folder, tmp_path, name):
    (tmp_path / "data").mkdir()
    MAKERS[name](tmp_path / "data")
    out = tmp_path / "out"
    command = ("eval", "--benchmark", name, "--data", tmp_path / "data", "--model", model_folder, "--device", "cpu")
    code, text, error = ma2mba(*command, "--out", out, "--json")
    assert code == 0, error
    report = json.loads(text)
    assert report["n"] + report["unreadable"] == report["questions"] == QUESTIONS
    assert report["unreadable"] == 0
    assert report["headline"] == ("mean_of_tasks" if name == "mlvu" else "accuracy")
    assert (report["paper"] is not None) == (name in ("video-mme", "longvideobench", "mvbench", "activitynet-qa"))
    first = json.loads((out / "answers.jsonl").read_text().splitlines()[0])
    assert first["prompt"].strip()
    assert first["frames"] >= 1
    assert (out / "accuracy.png").is_file()


def test_bad_choices_of_a_benchmark_are_refused(ma2mba, model_folder, tmp_path):
    (tmp_path / "data").mkdir()
    MAKERS["nextqa-mc"](tmp_path / "data")
    data = ("--data", tmp_path / "data", "--model", model_folder)
    for options, said in (
        (("--benchmark", "nextqa", *data), "--benchmark nextqa: unknown. Use one of video-mme"),
        (("--benchmark", "nextqa-mc", *data, "--subtitles"), "--subtitles: NExT-QA (multiple choice) has none"),
        (("--benchmark", "nextqa-mc", *data, "--only", "x"), "--only x: nextqa-mc has no such task. Use one of"),
        (("--benchmark", "nextqa-mc", "--model", model_folder), "--data is missing"),
        (("--benchmark", "nextqa-mc", *data, "--task", tmp_path / "x"), "--task and --benchmark: both given"),
        (("--task", tmp_path / "x", *data), "--data: is for --benchmark"),
    ):
        code, _, error = ma2mba("eval", *options)
        assert code == 2
        assert said in error
