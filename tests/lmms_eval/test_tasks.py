"""lmms-eval runs shipped tasks on local files. Its answers and scores are those of `ma2mba eval` with its prompts."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import lmms_eval.evaluator
import pytest
from lmms_eval.tasks import TaskManager

from ma2mba import VideoChat
from ma2mba.evaluation.benchmarks import read_benchmark
from ma2mba.evaluation.evaluate import Questions
from ma2mba.evaluation.evaluate import evaluate as own_evaluate
from ma2mba.video.frames import FrameReader
from tests.lmms_eval.letters import letters
from tests.lmms_eval.published import TASKS, ShippedTask

GUESSING = {"nextqa", "longvideobench"}
"""Tasks that score an answer without a letter as a random guess. `ma2mba eval` counts it as wrong."""
SAME_PROMPT = {"lvbench", "longtimescope", "perceptiontest"}
"""Tasks whose prompts are those of `ma2mba eval`. The others word them differently from the benchmark's authors."""


@pytest.fixture
def by_chance(monkeypatch):
    with letters(monkeypatch):
        yield


def evaluate(task_folder: Path, model_folder: Path, *names: str, model_args: str = "frames=1fps", **options):
    manager = TaskManager(include_path=str(task_folder), include_defaults=False, model_name="ma2mba")
    return lmms_eval.evaluator.simple_evaluate(
        model="ma2mba",
        model_args=f"pretrained={model_folder},{model_args}",
        tasks=list(names),
        task_manager=manager,
        device="cpu",
        bootstrap_iters=0,
        **options,
    )


def evaluate_ourselves(task: ShippedTask, data: Path, hf_home: Path, model_folder: Path, out: Path):
    """Return the report and the records of `ma2mba eval` for the questions of a task, with the task's prompts."""
    items = read_benchmark(task.benchmark, data, media=hf_home / task.media)
    items = [replace(item, prompt=task.prompt(r)) for item, r in zip(items, task.records, strict=True)]
    report = own_evaluate(model_folder, Questions(items, task.benchmark, task.benchmark), out)
    lines = [json.loads(line) for path in out.glob("answers*.jsonl") for line in path.read_text().splitlines()]
    by_id = {line["id"]: line for line in lines if "id" in line}
    return report, [by_id[item.id] for item in items]


def answers_in(result, task: str) -> list[str]:
    samples = sorted(result["samples"][task], key=lambda sample: sample["doc_id"])
    return [sample["resps"][0][0] for sample in samples]


@pytest.mark.usefixtures("by_chance")
@pytest.mark.parametrize("name", TASKS)
def test_a_shipped_task_has_the_answers_and_the_score_of_ma2mba_eval(
    name, task_folder, model_folder, hf_home, tmp_path
):
    task = TASKS[name]
    result = evaluate(task_folder, model_folder, f"local_{name}", batch_size=3)
    report, records = evaluate_ourselves(task, task_folder / name, hf_home, model_folder, tmp_path / "out")
    assert answers_in(result, f"local_{name}") == [record["prediction"] for record in records]
    score = result["results"][f"local_{name}"][f"{task.metric},none"] / task.best
    guesses = sum(record["prediction"] == "?" for record in records) / len(records)
    assert 0 < report["accuracy"] < 0.7
    assert score == pytest.approx(report["accuracy"], abs=1e-4) or (
        name in GUESSING and report["accuracy"] <= score <= report["accuracy"] + guesses
    )


def test_only_some_prompts_are_those_of_ma2mba_eval(task_folder, hf_home):
    same = set()
    for name, task in TASKS.items():
        items = read_benchmark(task.benchmark, task_folder / name, media=hf_home / task.media)
        if [item.prompt for item in items] == [task.prompt(record) for record in task.records]:
            same.add(name)
    assert same == SAME_PROMPT


@pytest.mark.usefixtures("by_chance")
@pytest.mark.parametrize("batch_size", [1, 8])
def test_the_answers_are_those_of_a_chat(batch_size, task_folder, model_folder, hf_home):
    task = TASKS["lvbench"]
    result = evaluate(task_folder, model_folder, "local_lvbench", batch_size=batch_size, model_args="frames=3")
    expected, empty = [], VideoChat.open(model_folder, "cpu")
    with FrameReader() as reader:
        for record in task.records:
            chat = empty.fork()
            chat.watch(hf_home / task.media / task.file(record), 3, reader=reader, hashed=False)
            expected.append(chat.ask(task.prompt(record), repetition_stop=True).text)
    assert answers_in(result, "local_lvbench") == expected
    assert len(set(expected)) > 3


def test_the_command_runs(task_folder, model_folder, hf_home, tmp_path):
    command = [sys.executable, "-m", "lmms_eval", "eval", "--model", "ma2mba", "--model_args"]
    command += [f"pretrained={model_folder},frames=2", "--tasks", "local_mlvu,local_lvbench", "--limit", "3"]
    command += ["--include_path", str(task_folder), "--batch_size", "2", "--device", "cpu"]
    command += ["--output_path", str(tmp_path), "--log_samples"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "local_lvbench" in done.stdout
    assert list(tmp_path.rglob("*samples_local_lvbench.jsonl"))
