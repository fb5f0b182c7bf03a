"""docs/extending.md: its blocks equal the files, and its commands run: build, train, resume, plan, export, ask."""

import json
import os
import re
import shlex
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from data_prep.toy.words import save_tokenizer
from tests.unit.video.numbered_video import write

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(?:python|yaml|json) (\S+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^    python (.*)$", PAGE, re.MULTILINE)


def test_the_page_shows_the_files():
    """After a change copy the file into its block."""
    shown = [(name, block) for name, block in BLOCKS if name.startswith("examples/")]
    assert len(shown) == 5
    for name, block in shown:
        assert block == (ROOT / name).read_text(encoding="utf-8"), name


@pytest.fixture
def folder(tmp_path) -> Path:
    """my-captions/ as the page shows it, with two videos of 3 s, and the project's examples beside it."""
    (tmp_path / "my-captions/media").mkdir(parents=True)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for name in "ab":
        write(tmp_path / f"my-captions/media/{name}.mp4", range(30), Fraction(1, 10))
    save_tokenizer(tmp_path / "my-captions/tokenizer.json")
    for name, block in BLOCKS:
        if not name.startswith("examples/"):
            (tmp_path / "my-captions" / name).write_text(block, encoding="utf-8")
    return tmp_path


def test_the_commands_run_as_printed(folder):
    assert [shlex.split(command)[1] for command in COMMANDS if "cli.py" in command] == ["plan", "export", "ask"]
    said = [run(folder, command) for command in COMMANDS]
    assert said[0]
    steps = [json.loads(line)["step"] for line in (folder / "runs/gated/metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    assert (folder / "runs/gated/checkpoints/latest").read_text().strip() == "step-000004"
    config = json.loads((folder / "gated-model/config.json").read_text())
    assert (config["text_config"]["layer"], config["vision_config"]["encoder"]) == ("gated", "patches")


def run(folder: Path, command: str) -> str:
    """Run a command of the page in `folder`; return its output."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, *shlex.split(command)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout
