"""From a wheel alone, in an empty folder without a checkout: data, training, export, question, evaluation."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ma2mba.model.hf.bundle import code_files
from tests.checkout import ROOT, copy_checkout
from tests.dist.launching import finished
from tests.tiny import TINY_MODEL

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
SHORT = ("epochs=null", "steps=2", "global_batch=4", "micro_batch=2", "zero_config=zero1", "precision=fp32")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder into which pip installs the wheel; everything else comes from this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [*build, "--wheel-dir", str(folder), str(copy_checkout(folder / "checkout"))], check=True, cwd=folder
    )
    (wheel,) = folder.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder / "site")]
    subprocess.run([*install, str(wheel)], check=True, cwd=folder)
    return folder / "site"


@pytest.fixture(scope="module")
def ma2mba(installed, tmp_path_factory):
    """Run the installed command in an empty folder and return its output."""
    empty = tmp_path_factory.mktemp("empty")

    def run(*arguments: str, code: int = 0) -> str:
        command = [sys.executable, str(installed / "bin" / "ma2mba"), *arguments]
        done = finished(command, empty, PYTHONPATH=str(installed), COLUMNS="200")
        assert done.returncode == code, done.stdout
        return done.stdout

    run.folder = empty
    return run


def test_everything_that_is_shipped_is_in_the_wheel(installed, ma2mba):
    code = "import ma2mba, data_prep; print(ma2mba.__file__, data_prep.__file__)"
    where = finished([sys.executable, "-c", code], ma2mba.folder, PYTHONPATH=str(installed)).stdout.split()
    assert all(Path(file).is_relative_to(installed) for file in where)
    for source, package in (("launch/recipes", "ma2mba/recipes"), ("ds_configs", "ma2mba/policies")):
        shipped = {path.name: path.read_bytes() for path in (ROOT / source).iterdir()}
        assert {path.name: path.read_bytes() for path in (installed / package).iterdir()} == shipped
    (wheel,) = installed.parent.glob("*.whl")
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"ma2mba", "data_prep"}


def test_a_wheel_trains_and_answers(ma2mba):
    amounts = ("--short", "0", "--stills", "4", "--clips", "0", "--held-out", "1")
    ma2mba("data", "toy", "--out", "toy", "--videos", "2", *amounts, "--seconds", "6:8", "--workers", "1")
    assert "nothing was written" in ma2mba("data", "build", "toy/stage2.yaml", "--out", "shards", "--dry-run")
    assert not (ma2mba.folder / "shards").exists()
    ma2mba("data", "build", "toy/stage2.yaml", "--out", "shards", "--workers", "1")

    assert "stage2" in ma2mba("recipes")
    ma2mba("recipes", "copy", "stage2", "mine.yaml")
    model = f"model={tiny_model(ma2mba.folder)}"
    first = ("mine.yaml", "data=shards", "run=one", "init_from=null", model, *SHORT)
    assert "Nothing was trained" in ma2mba("train", *first, "--dry-run")
    assert not (ma2mba.folder / "one").exists()
    ma2mba("train", *first)
    assert "is finished" in ma2mba("train", *first)
    second = ("stage2", "data=shards", "run=two", "init_from=one", *SHORT)
    ma2mba("train", "--gpus", "2", *second)

    ma2mba("export", "two", "--out", "model", "--license", "apache-2.0")
    written = {path.name for path in (ma2mba.folder / "model").iterdir()}
    assert {*code_files(), "README.md", "processor_config.json", "chat_template.jinja"} <= written
    video = next((ma2mba.folder / "toy/media/heldout").glob("*.mp4"))
    ma2mba("ask", str(video), "Which symbol appeared?", "--model", "model", "--max-tokens", "4")
    assert "questions answered" in ma2mba("eval", "--model", "model", "--task", "toy/eval.jsonl", "--limit", "2")


def tiny_model(folder: Path) -> str:
    """Return a section `model` with the toy tokenizer's vocabulary and the toy's image size."""
    code = "from tokenizers import Tokenizer; print(Tokenizer.from_file('toy/tokenizer.json').get_vocab_size())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder)
    language = TINY_MODEL["language_model"] | {"vocab_size": int(done.stdout)}
    return str({"language_model": language, "vision": TINY_MODEL["vision"] | {"image_size": 56, "patch_size": 14}})


def test_it_is_clear_what_was_wrong_without_a_checkout(ma2mba):
    said = ma2mba("train", "nothing.yaml", code=2)
    assert "nothing.yaml: cannot be read" in said
    assert "stage1, stage1_5, stage2" in said
    assert os.listdir(ma2mba.folder)
