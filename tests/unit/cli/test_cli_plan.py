"""The command `ma2mba plan`."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from rich.console import Console

from ma2mba.cli import app as cli
from ma2mba.cli import plan as cli_plan

ROOT = Path(__file__).resolve().parents[3]
RECIPE = """
stage: stage2
data: shards
run: run
model:
  language_model: {d_model: 64, n_layer: 4, d_state: 16, headdim: 16, vocab_size: 500}
  vision: {hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2, image_size: 56}
trainable: {language_model: 1.0e-4}
global_batch: 4
micro_batch: 2
steps: 1
precision: fp32
"""


@pytest.fixture
def plan(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ma2mba", "plan", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return run


def test_a_choice_a_runner_up_and_the_longest(plan, tmp_path):
    picture = tmp_path / "plots" / "plan.png"
    code, text, error = plan(
        "--model", "370m", "--tokens", 262144, "--device-memory", 24, "--host-memory", 64, "--json", "--plot", picture
    )
    assert (code, error) == (0, "")
    facts = json.loads(text)
    choice, other = facts["choice"], facts["runner_up"]
    assert choice["device_bytes"] == sum(choice["device_parts"].values()) <= facts["usable_device_bytes"] < 24 * 2**30
    assert {"weights", "gradients", "optimizer", "layer checkpoints", "state checkpoints", "cell", "loss"} <= set(
        choice["device_parts"]
    )
    assert other["plan"] != choice["plan"]
    assert other["seconds"] >= choice["seconds"] / 1.01
    assert facts["longest"]["tokens"] > 262144
    assert facts["reasons"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_plot_that_cannot_be_written_does_not_suppress_the_answer(plan, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    picture = recipe / "plan.png"
    code, text, error = plan("--model", recipe, "--tokens", 4096, "--device-memory", 1, "--json", "--plot", picture)
    assert code == 2
    assert json.loads(text)["tokens"] == 4096
    assert f"{recipe}: cannot be used (File exists)" in error


def test_json_has_no_colours(plan, monkeypatch):
    monkeypatch.setattr(cli_plan, "out", Console(force_terminal=True))
    assert json.loads(plan("--paper", "--json")[1])


def test_text_output(plan):
    code, text, _ = plan("--model", "370m", "--video-hours", 0.5, "--device-memory", 40, "--zero", 1, "--gpus", 8)
    assert code == 0
    assert "260,224 tokens" in text
    for heading in ("choice", "runner-up", "gradient sums", "device memory, GiB", "Longest sequence that fits"):
        assert heading in text


def test_a_recipe(plan, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    code, text, _ = plan("--model", path, "--tokens", 4096, "--device-memory", 1, "--json")
    assert code == 0
    parts = json.loads(text)["choice"]["device_parts"]
    assert parts["gradients"] < parts["weights"], "only the language model is trained"


def test_a_recipe_whose_init_from_does_not_exist(plan, tmp_path):
    """The new model that the error describes can be used as it is written."""
    stage2 = shutil.copy(ROOT / "launch" / "recipes" / "stage2.yaml", tmp_path)
    common = ("--tokens", 262144, "--device-memory", 80, "--gpus", 8, "--json")
    code, text, error = plan("--model", stage2, *common)
    assert (code, text) == (2, "")
    assert "runs/stage1_5 does not exist; give a run or model folder" in error
    assert "runs/stage1_5 does not exist" in plan("--model", "stage2", *common)[2], "a shipped recipe has a name"
    code, text, _ = plan("--model", stage2, *shlex.split(error.split("or describe a new model: ")[1]), *common)
    assert code == 0
    assert json.loads(text)["choice"]["device_parts"]["weights"] > 5 * 2**30
    code, text, error = plan("--model", "370m", "seed=1", *common)
    assert (code, text) == (2, "")
    assert "seed=1: --model 370m is not a recipe" in error


def test_a_recipe_whose_ranks_share_sequences(plan, tmp_path):
    """One rank has half of the sequence, in chunks of half the length. ZeRO shards over all GPUs."""
    alone, shared = tmp_path / "alone.yaml", tmp_path / "shared.yaml"
    alone.write_text(RECIPE)
    shared.write_text(RECIPE + "parallel: {sequence: 2}\n")
    common = ("--device-memory", 6, "--gpus", 4)
    estimated = (*common, "--zero", 3, "--ops", "torch", "--json")  # a GPU would measure times, twice
    facts = json.loads(plan("--model", shared, "--tokens", 16384, *estimated)[1])
    half = json.loads(plan("--model", alone, "--tokens", 8192, *estimated)[1])
    assert (facts["tokens"], facts["ranks"], facts["rank_tokens"]) == (16384, 2, 8192)
    assert (half["tokens"], half["ranks"], half["rank_tokens"]) == (8192, 1, 8192)
    for name in ("choice", "runner_up", "longest"):
        both, one = facts[name]["plan"], half[name]["plan"]
        assert both == one | {"chunk_tokens": 2 * one["chunk_tokens"]}
    assert facts["longest"]["tokens"] == 2 * half["longest"]["tokens"]
    assert facts["choice"]["device_parts"] == half["choice"]["device_parts"]
    assert facts["choice"]["tokens_per_second"] == pytest.approx(2 * half["choice"]["tokens_per_second"], abs=1)
    captured = json.loads(plan("--model", alone, "--tokens", 8192, *common, "--json")[1])
    assert captured["choice"]["plan"]["graphs"]
    code, text, _ = plan("--model", shared, "--tokens", 16384, *common, "--plot", tmp_path / "plan.png")
    assert code == 0
    assert re.search("16,384 tokens.*tokens on each of 2 ranks[ │]* 8,192", text, re.DOTALL)
    assert "chunk_tokens counts the tokens of all 2 ranks" in text
    assert re.search("graphs[ │]* no", text)


@pytest.mark.parametrize(("gpus", "near"), [(1, 2), (3, 4)])
def test_gpus_that_are_not_a_multiple_of_the_ranks_of_a_sequence(plan, tmp_path, gpus, near):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE + "parallel: {sequence: 2}\n")
    code, text, error = plan("--model", path, "--tokens", 4096, "--device-memory", 1, "--gpus", gpus)
    assert (code, text) == (2, "")
    assert f"--gpus {gpus} is not a multiple of {path}'s parallel.sequence: 2; use --gpus {near}" in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "2.7b", "--tokens", 1024, "--device-memory", 30], "the smallest plan needs"),
        (
            ["--model", "7b", "--tokens", 1024, "--device-memory", 30],
            "unknown model. Use one of 370m, 1.3b, 2.7b, or a recipe",
        ),
        (["--model", "370m", "--device-memory", 30], "missing or given twice; give either --tokens or --video-hours"),
        (
            ["--model", "370m", "--tokens", 1, "--video-hours", 1, "--device-memory", 30],
            "give either --tokens or --video-hours",
        ),
        (["--model", "370m", "--tokens", 1024], "--device-memory is missing"),
        (["--model", "none.yaml", "--tokens", 1024, "--device-memory", 1], "none.yaml: cannot be read"),
        (["--model", "370m", "--tokens", 1, "--device-memory", "inf"], "--device-memory inf: not a finite number"),
        (["--model", "370m", "--tokens", 1, "--device-memory", 1, "--host-memory", "inf"], "--host-memory inf: not"),
        (["--model", "370m", "--video-hours", "inf", "--device-memory", 30], "--video-hours inf: not a finite number"),
    ],
)
def test_wrong_options_exit_with_code_2_and_say_what_to_do(plan, arguments, said):
    code, text, error = plan(*arguments)
    assert (code, text) == (2, "")
    assert said in error


def test_the_named_memory_is_enough(plan):
    code, _, error = plan("--model", "370m", "--tokens", 8192, "--device-memory", 10)
    assert code == 2
    named = float(error.split("smallest plan needs ")[1].split(" GiB")[0])
    assert plan("--model", "370m", "--tokens", 8192, "--device-memory", named)[0] == 0
    assert plan("--model", "370m", "--tokens", 8192, "--device-memory", named - 0.2)[0] == 2


def test_paper(plan):
    code, text, _ = plan("--paper", "--json")
    assert code == 0
    assert json.loads(text)["table7"]["2.7b"] == {"C_L": 2560, "C_S": 671488, "C_grid": 15696, "C_state": 660736}
    assert "671,488" in plan("--paper")[1]
