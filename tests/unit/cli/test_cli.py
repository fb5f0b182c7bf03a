"""The command line as a user meets it: answers, tables, JSON, and exit code 2 with a reason for bad input."""

import json
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ma2mba import __version__
from ma2mba.data.sampler import Position
from ma2mba.evaluation.answers_file import AnswersFile
from ma2mba.model.pretrained import load_model
from ma2mba.training.checkpoint.folder import publish, temporary_folder

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def task_file(picture):
    path = picture.parent / "eval.jsonl"
    line = {"video": picture.name, "question": "What?", "answer": "one", "options": ["one", "two"]}
    path.write_text("".join(json.dumps(line | {"id": f"q{i}", "task": "count"}) + "\n" for i in range(3)))
    return path


@pytest.fixture
def run_folder(model_folder, tmp_path):
    """A run with two checkpoints; in the first, the model is damaged."""
    run = tmp_path / "run"
    for step in (3, 6):
        shutil.copytree(model_folder, temporary_folder(run, step) / "model")
        facts = {
            "ranks": 1,
            "zero_stage": 1,
            "dtype": "torch.float32",
            "data_fingerprint": "0",
            "recipe": {},
            "code": {},
        }
        publish(run, step, Position(0, step), facts)
    weights = run / "checkpoints/step-000003/model/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (run / "recipe.yaml").write_text("stage: stage2\n")
    (run / "metrics.jsonl").write_text('{"step": 6, "loss": 0.25}\n')
    return run


def test_verbose_shows_the_model_and_the_frames(ma2mba, picture, model_folder, caplog):
    ma2mba(
        "ask",
        picture,
        "Which symbol?",
        "--model",
        model_folder,
        "--max-tokens",
        1,
        "--device",
        "cpu",
        "--dtype",
        "fp32",
        "--verbose",
    )
    decided = [record.getMessage() for record in caplog.records]
    assert f"model: {model_folder}, torch.float32 on cpu" in decided
    assert any("1 frames sampled" in line for line in decided)


def test_help_is_quick():
    """Nothing slow is imported before a command needs it."""
    slow = ("torch", "transformers", "pyarrow", "matplotlib")
    code = f"import sys, ma2mba.cli.app; print([name for name in {slow} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


def test_ask_streams_the_answer_that_json_holds(ma2mba, picture, model_folder):
    code, said, _ = ma2mba("ask", picture, "Which symbol?", "--model", model_folder, "--max-tokens", 5)
    assert code == 0
    code, text, _ = ma2mba("ask", picture, "Which symbol?", "--model", model_folder, "--max-tokens", 5, "--json")
    assert code == 0
    facts = json.loads(text)
    assert facts["answer"]
    assert facts["answer"] == said.strip()
    assert facts["frames"] == 1
    assert facts["question"] == "Which symbol?"


def test_the_model_of_a_run_answers_like_the_model(ma2mba, picture, run_folder, model_folder):
    answers = [
        ma2mba("ask", picture, "What?", "--model", model, "--max-tokens", 3, "--device", "cpu")
        for model in (model_folder, run_folder, run_folder / "checkpoints/step-000006")
    ]
    assert answers[0][0] == 0
    assert answers[1] == answers[2] == answers[0]
    code, _, error = ma2mba("ask", picture, "What?", "--model", run_folder / "checkpoints/step-000003")
    assert code == 2
    assert "is damaged" in error


@pytest.mark.parametrize(("dtype", "shown"), [("bf16", "torch.bfloat16"), ("fp32", "torch.float32")])
def test_the_dtype_is_chosen(ma2mba, picture, task_file, model_folder, caplog, dtype, shown):
    options = ("--model", model_folder, "--dtype", dtype, "--device", "cpu")
    assert ma2mba("ask", picture, "What?", *options, "--max-tokens", 2, "--verbose")[0] == 0
    assert f"model: {model_folder}, {shown} on cpu" in caplog.text
    assert ma2mba("eval", *options, "--task", task_file, "--limit", 1)[0] == 0


def test_eval_prints_a_table_and_writes_every_answer(ma2mba, task_file, model_folder, tmp_path):
    out = tmp_path / "results" / "eval"
    code, text, _ = ma2mba("eval", "--model", model_folder, "--task", task_file, "--limit", 2, "--out", out)
    assert code == 0
    assert "all" in text
    assert "50.0%" in text, "chance"
    assert [json.loads(line)["id"] for line in (out / "answers.jsonl").read_text().splitlines()] == ["q0", "q1"]
    report = json.loads((out / "report.json").read_text())
    assert [record["id"] for record in report["records"]] == ["q0", "q1"]
    assert (out / "accuracy.png").is_file()
    assert (out / "by_length.png").is_file()
    code, text, _ = ma2mba("eval", "--report", out, "--json")
    assert (code, json.loads(text)) == (0, report)
    code, text, _ = ma2mba("eval", "--model", model_folder, "--task", task_file, "--json", "--frames", 8)
    assert code == 0
    assert json.loads(text)["n"] == 3


def test_eval_lists_what_it_could_not_answer(ma2mba, task_file, model_folder):
    (task_file.parent / "bad.png").write_bytes(b"no picture")
    lines = task_file.read_text().splitlines()
    task_file.write_text("\n".join([lines[0], lines[1].replace("picture.png", "bad.png")]))
    code, text, _ = ma2mba("eval", "--model", model_folder, "--task", task_file)
    assert code == 0
    assert "1 questions answered, 1 not answered" in text
    assert f"not answered: 1 about {task_file.parent / 'bad.png'}: not a readable image" in text


def test_a_stopped_eval_keeps_its_answers(ma2mba, task_file, model_folder, tmp_path, monkeypatch):
    real = AnswersFile.add

    def add(self, record):
        real(self, record)
        if len(self.records) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(AnswersFile, "add", add)
    command = ("eval", "--model", model_folder, "--task", task_file, "--out", tmp_path / "out")
    code, _, error = ma2mba(*command)
    assert code == 130
    assert f"stopped: {tmp_path / 'out'} has 1 of 3 answers. Run the same command again to resume" in error
    assert len((tmp_path / "out/answers.jsonl").read_text().splitlines()) == 2
    code, text, _ = ma2mba("eval", "--report", tmp_path / "out")
    assert code == 1
    assert "incomplete: part 0/1 has 2 of 3 answers" in text
    assert not (tmp_path / "out/report.json").exists()
    monkeypatch.setattr(AnswersFile, "add", real)
    assert ma2mba(*command)[0] == 0
    assert json.loads((tmp_path / "out/report.json").read_text())["n"] == 3


def test_parts_of_an_eval_are_merged_by_the_last_one(ma2mba, task_file, model_folder, tmp_path):
    other = task_file.parent / "other.png"
    other.write_bytes((task_file.parent / "picture.png").read_bytes())
    task_file.write_text(task_file.read_text().replace("picture.png", "other.png", 1))
    command = ("eval", "--model", model_folder, "--task", task_file, "--out", tmp_path / "out")
    code, text, _ = ma2mba(*command, "--part", "1/2")
    assert code == 0
    assert "part 1/2 is complete; part 0/2 has 0 of 1 answers" in text
    code, text, _ = ma2mba(*command, "--part", "0/2", "--json")
    assert code == 0
    assert json.loads(text)["n"] == 3
    code, _, error = ma2mba(*command)
    assert code == 2
    assert "parts: 2 there, 1 now" in error


def test_export_copies_the_latest_model(ma2mba, run_folder, model_folder, tmp_path):
    out = tmp_path / "exported"
    code, text, _ = ma2mba("export", run_folder, "--out", out)
    assert code == 0
    assert "step-000006" in text
    written, saved = ({p.name: p.read_bytes() for p in folder.iterdir()} for folder in (out, model_folder))
    assert written.keys() == saved.keys()
    assert {n for n in saved if written[n] != saved[n]} == {"README.md", "checksums.json"}  # the card knows the run
    load_model(out)
    assert sorted(path.name for path in out.parent.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--step", 3], "model.safetensors: is damaged"),
        (["--step", 4], "no checkpoint of step 4. Train longer, or choose --step from the existing steps: 3, 6"),
    ],
)
def test_export_refuses_and_leaves_nothing(ma2mba, run_folder, tmp_path, options, said):
    code, _, error = ma2mba("export", run_folder, "--out", tmp_path / "exported", *options)
    assert code == 2
    assert said in error
    assert not (tmp_path / "exported").exists()


def test_export_does_not_overwrite(ma2mba, run_folder, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    code, _, error = ma2mba("export", run_folder, "--out", tmp_path)
    assert code == 2
    assert "is not empty" in error
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_inspect_a_model(ma2mba, model_folder, model):
    parameters = sum(parameter.numel() for parameter in model.parameters())
    code, text, _ = ma2mba("inspect", model_folder, "--json")
    assert code == 0
    facts = json.loads(text)
    assert facts["kind"] == "model"
    assert facts["parameters"] == sum(facts["parameters_by_part"].values()) == parameters
    assert facts["tokens_per_frame"] == 4
    code, text, _ = ma2mba("inspect", model_folder)
    assert code == 0
    assert f"{parameters:,}" in text


def test_inspect_a_run(ma2mba, run_folder):
    facts = json.loads(ma2mba("inspect", run_folder, "--json")[1])
    assert facts == {
        "kind": "run",
        "stage": "stage2",
        "steps": 6,
        "loss": 0.25,
        "checkpoints": ["step-000003", "step-000006"],
        "latest": "step-000006",
    }


def test_inspect_a_run_that_has_only_begun(ma2mba, tmp_path, monkeypatch):
    """No loss yet, and a recipe that the disk did not take: JSON all the same, without colours."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "recipe.yaml").write_text("")
    monkeypatch.setattr("ma2mba.cli.inspect.out", Console(force_terminal=True))
    code, text, _ = ma2mba("inspect", tmp_path, "--json")
    facts = json.loads(text, parse_constant=pytest.fail)
    assert (code, facts["loss"], facts["stage"], facts["steps"]) == (0, None, "unknown", 0)
    assert "none" in ma2mba("inspect", tmp_path)[1]


def test_a_recipe_of_a_run_that_is_not_yaml(ma2mba, run_folder):
    (run_folder / "recipe.yaml").write_text("stage: [")
    code, _, error = ma2mba("inspect", run_folder)
    assert code == 2
    assert "recipe.yaml: not YAML" in error


def test_a_path_that_cannot_be_used_ends_with_2(ma2mba, run_folder, picture):
    code, _, error = ma2mba("export", run_folder, "--out", picture / "model")
    assert code == 2
    assert re.search(r"picture.png.*: cannot be used \((Not a directory|File exists)\): give another path", error)


@contextmanager
def full_disk(_):
    with open("/dev/full", "w") as file:
        yield file


def test_a_disk_that_fills_is_said_and_keeps_the_answers(ma2mba, model_folder, task_file, tmp_path, monkeypatch):
    monkeypatch.setattr("ma2mba.evaluation.results.atomic_write", full_disk)
    code, _, error = ma2mba("eval", "--model", model_folder, "--task", task_file, "--out", tmp_path / "out")
    assert code == 2
    assert "a disk is full: free some space" in error
    assert len((tmp_path / "out/answers.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ask", "{picture}", "  ", "--model", "{model}"], "the question is empty. Ask one"),
        (["ask", "{picture}", "What?", "--model", "{model}", "--frames", "0"], "--frames 0: not a number of"),
        (["ask", "{picture}x", "What?", "--model", "{model}"], "picture.pngx: this video does not exist"),
        (
            ["ask", "{picture}", "What?", "--model", "{model}x"],
            "modelx: does not exist. Give a model folder, or the folder of a run",
        ),
        (["ask", "{picture}", "What?", "--model", "{model}", "--device", "tpu"], "Use auto, cpu or cuda"),
        (
            ["ask", "{picture}", "What?", "--model", "{model}", "--dtype", "fp16"],
            "--dtype fp16: unknown dtype. Use auto",
        ),
        (["eval", "--model", "{model}", "--task", "{task}", "--dtype", "half"], "--dtype half: unknown dtype"),
        (["eval", "--model", "{model}x", "--task", "{task}"], "modelx: does not exist. Give a model folder"),
        (["export", "{folder}/none", "--out", "{folder}/new"], "none: does not exist. Give the folder of a run"),
        (["ask", "{picture}", "What?", "--model", "{model}", "--max-tokens", "0"], "max-tokens"),
        (["ask", "{picture}", "What?"], "--model"),
        (["eval", "--model", "{model}", "--task", "{task}x"], "this task file does not exist"),
        (["eval", "--model", "{model}", "--task", "{task}", "--frames", "two"], "--frames two: not a number of frames"),
        (["eval", "--model", "{model}", "--task", "{task}", "--only", "order"], "Its tasks are: count"),
        (
            ["eval", "--model", "{model}x", "--task", "{task}", "--out", "{folder}/a.json"],
            "names a file. Name a folder",
        ),
        (["eval", "--model", "{model}x", "--task", "{task}", "--out", "{picture}"], "is not a folder. Name a folder"),
        (
            ["eval", "--model", "{model}", "--task", "{task}", "--part", "2/2"],
            "--part 2/2: out of range. Use 0/2 to 1/2",
        ),
        (["eval", "--model", "{model}", "--task", "{task}", "--part", "0/2"], "--out is missing. Part 0/2"),
        (["eval", "--model", "{model}"], "--task and --benchmark: both missing"),
        (["eval", "--task", "{task}"], "--model is missing"),
        (["eval", "--report", "{folder}"], "run.json: does not exist. Name the --out of an evaluation"),
        (["inspect", "{picture}"], "this folder does not exist"),
        (["inspect", "{folder}"], "neither a shard folder (manifest.json), nor a run folder"),
        (["export", "{folder}", "--out", "{folder}/new"], "neither a run folder (no checkpoints/) nor a model folder"),
        (["surprise"], "No such command"),
    ],
)
def test_bad_input_ends_with_2_and_says_what_to_do(ma2mba, picture, task_file, model_folder, tmp_path, arguments, said):
    places = {"picture": picture, "task": task_file, "model": model_folder, "folder": tmp_path}
    code, out, error = ma2mba(*(argument.format(**places) for argument in arguments))
    assert code == 2
    assert said in error
    assert out == ""


def test_version(ma2mba):
    assert ma2mba("--version")[:2] == (0, f"ma2mba {__version__}\n")
