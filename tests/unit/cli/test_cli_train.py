"""`ma2mba train` before it trains: dry runs, decisions, and what it refuses. (tests/dist and tests/e2e train.)"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ma2mba.shards.manifest import FeatureInfo
from tests.tiny import TINY_MODEL
from tests.unit.data.toy_shards import write_shards

ROOT = Path(__file__).resolve().parents[3]
SIZES = [(3, 2), (5, 4), (2, 1), (9, 3)]


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> Path:
    """A recipe for four samples, in the current directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    write_shards(tmp_path / "shards", SIZES)
    values = {"stage": "stage2", "data": "shards", "run": "run", "model": TINY_MODEL, "precision": "fp32"}
    values |= {"trainable": {"projector": 2e-3, "language_model": 1e-3}, "global_batch": 4, "epochs": 5}
    values |= {"checkpoint": {"every": 2}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "recipe.yaml"


def everything_in(folder: Path) -> list[tuple[Path, bytes]]:
    return sorted((path, path.read_bytes()) for path in folder.rglob("*") if path.is_file())


def test_a_dry_run_shows_the_run_and_writes_nothing(ma2mba, recipe):
    before = everything_in(recipe.parent)
    code, said, _ = ma2mba("train", "recipe.yaml", "--dry-run")
    assert code == 0
    for expected in (
        "new, drawn by the seed",
        "learning rate 0.002",
        "frozen",
        "4 samples, 19 frames",
        "9 frames",
        "1 on cpu, float32, ZeRO 1",
        "4 samples = 1 in a micro-batch * 1 rank * 4 accumulated",
        "checkpoints after steps 2, 4, 5; keeps the last 2",
        "Nothing was trained and nothing was written.",
    ):
        assert expected in said
    assert everything_in(recipe.parent) == before
    assert not (recipe.parent / "run").exists()


def test_a_dry_run_plans_for_the_ranks_that_it_is_given(ma2mba, recipe):
    (recipe.parent / "hosts").write_text("a slots=2\nb slots=2\n")
    assert "2 on cpu" in ma2mba("train", "recipe.yaml", "--gpus", 2, "--dry-run")[1]
    assert "4 on cpu" in ma2mba("train", "recipe.yaml", "--hostfile", "hosts", "--dry-run")[1]
    assert (
        "1 in a micro-batch * 2 ranks"
        in ma2mba("train", "recipe.yaml", "--hostfile", "hosts", "--gpus", 1, "--dry-run")[1]
    )
    code, _, error = ma2mba("train", "recipe.yaml", "--gpus", 3, "--dry-run")
    assert code == 2
    assert "4 is not a multiple of micro_batch 1 * 3 ranks" in error


def test_a_dry_run_refuses_what_training_would(ma2mba, recipe):
    write_shards(recipe.parent / "features", SIZES, features=FeatureInfo(tokens=4, width=32, encoder="0" * 32))
    code, _, error = ma2mba("train", "recipe.yaml", "data=features", "trainable.vision=1e-3", "--dry-run")
    assert code == 2
    assert "trainable.vision: 0.001 is incompatible" in error
    assert ma2mba("train", "recipe.yaml", "data=nowhere", "--dry-run")[0] == 2


def test_verbose_shows_what_is_decided(ma2mba, recipe, caplog):
    ma2mba("train", "recipe.yaml", "--dry-run", "--verbose")
    decided = "\n".join(record.getMessage() for record in caplog.records)
    assert "ranks: 1 on cpu, dtype torch.float32" in decided
    assert "data: 4 samples" in decided


@pytest.mark.parametrize("option", [("--gpus", 2), ("--hostfile", "hosts")])
def test_a_rank_starts_no_ranks(ma2mba, recipe, monkeypatch, option):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, error = ma2mba("train", "recipe.yaml", *option)
    assert code == 2
    assert "WORLD_SIZE=2 is set" in error


def test_a_wrong_recipe_starts_no_ranks(ma2mba, recipe, monkeypatch):
    monkeypatch.setattr("ma2mba.training.launcher.run_launcher", lambda *_: pytest.fail("the launcher was started"))
    code, _, error = ma2mba("train", "recipe.yaml", "global_batch=0", "--gpus", 2)
    assert code == 2
    assert "global_batch: 0 is wrong" in error


COMMANDS = [[], ["train"], ["data"], ["data", "build"], ["data", "toy-eval"], ["recipes"], ["recipes", "copy"]]
COMMANDS += [[name] for name in ("ask", "eval", "generate", "export", "inspect", "plan", "replay", "doctor")]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(ma2mba, command):
    short, long = ma2mba(*command, "-h"), ma2mba(*command, "--help")
    assert short == long
    assert short[0] == 0
    assert "Usage: ma2mba" in short[1]


def test_bash_completes_commands():
    words = {"_MA2MBA_COMPLETE": "complete_bash", "COMP_WORDS": "ma2mba re", "COMP_CWORD": "1"}
    command = [sys.executable, "-m", "ma2mba"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | words)
    assert sorted(done.stdout.split()) == ["recipes", "replay"]
