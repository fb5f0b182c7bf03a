"""make targets pass each value on as it was given: nothing in it is run."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STUB = "#!/bin/sh\n{ printf '%s\\0' \"$@\"; printf '\\036'; } >> \"$RECORD\"\n"
VALUES = {
    "plain": "shards/a",
    "space": "my shards/it",
    "two spaces": "  a  b ",
    "single quote": "it's",
    "double quote": 'the "best"',
    "make's shell": "$(shell touch victim)",
    "braces": "${shell touch victim}",
    "shell": "$(touch victim)",
    "doubled dollar": "$$(touch victim)",
    "backticks": "`touch victim`",
    "end of a command": "a; touch victim",
    "end of a quote": '"; touch victim; "',
    "end of a single quote": "'; touch victim; '",
    "pipe": "a | touch victim & touch victim",
    "redirection": "a > victim",
    "new line": "a\ntouch victim\n\ttouch victim",
    "variable": "$HOME $(HOME) $@ ${PWD}",
    "glob": "* ? [a-z] ~",
    "backslash": "a\\ b\\",
    "hash": "a #b",
    "equals": "a=b:=c",
    "eval": "$(eval override BIN := $(shell touch victim))",
    "define": "endef\n$(shell touch victim)",
    "percent and comma": "100%,(a",
    "umlaut": "Müller/映画",
}


@pytest.fixture
def make(tmp_path):
    """Runs make in a copy of what it needs, with a stub for each program; returns the process and the stubs' words."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    (tmp_path / "setup.py").touch()
    (tmp_path / "venv/bin").mkdir(parents=True)
    for name in ("python", "ma2mba", "ruff", "mypy"):
        (tmp_path / "venv/bin" / name).write_text(STUB)
        (tmp_path / "venv/bin" / name).chmod(0o755)
    (tmp_path / "venv/.installed").touch()
    clean = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "RECORD": str(tmp_path / "record")}

    def run(*arguments, **environment):
        command = ["make", "VENV=venv", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=clean | environment, capture_output=True, check=False)
        assert not (tmp_path / "victim").exists(), "a value was run"
        record = tmp_path / "record"
        commands = record.read_bytes().decode().split("\x1e")[:-1] if record.exists() else []
        return done, [command.split("\0")[:-1] for command in commands]

    return run


@pytest.mark.parametrize("where", ["command line", "environment"])
@pytest.mark.parametrize("name", VALUES)
def test_values_reach_the_command_as_they_are(make, name, where):
    value = VALUES[name]
    given = {"DATA": value, "RUN": value, "GPUS": value, "UNKNOWN": value}
    if where == "environment":
        done, words = make("stage1.5", **given)
    else:
        done, words = make("stage1.5", *(f"{key}={text}" for key, text in given.items()))
    # make itself drops blanks before a value on its command line
    shown = value.lstrip(" ") if where == "command line" else value
    expected = ["train", "launch/recipes/stage1_5.yaml", "--gpus", shown, f"data={shown}", f"run={shown}"]
    assert (done.returncode, words) == (0, [expected]), done.stderr


@pytest.mark.parametrize("name", VALUES)
def test_other_targets_quote_too(make, name):
    value = VALUES[name]
    done, words = make("shards", f"DATA={value}", f"RUN={value}", f"HOSTFILE={value}", f"SEED={value}")
    shown = value.lstrip(" ")
    assert (done.returncode, words) == (0, [["data", "build", shown, "--out", shown]]), done.stderr
    done, words = make("stage2", f"DATA={value}", "RUN=r", f"HOSTFILE={value}")
    assert words[1:] == [["train", "launch/recipes/stage2.yaml", "--hostfile", shown, f"data={shown}", "run=r"]]
    for target in ("fuzz", "test-slow", "help"):
        done, _ = make(target, *(f"{key}={value}" for key in ("SEED", "ROUNDS", "DATA", "TORCH_INDEX", "PYTHON")))
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("-k magc", ["-k", "magc"]),
        ("-k 'magc and not slow' -x", ["-k", "magc and not slow", "-x"]),
        ("steps=2 'model={a: \"b c\"}'", ["steps=2", 'model={a: "b c"}']),
        (r"a\ b 'it'\''s' '' \\", ["a b", "it's", "", "\\"]),
        ('"a \\"b\\" \\c $HOME"', ['a "b" \\c $HOME']),
        ("one\n two\tthree", ["one", "two", "three"]),
        ("$(shell touch victim) `touch victim` ; touch victim", None),
        ("data=$(touch victim) > victim & * ~", None),
        ("--kills 20 --seed 1", ["--kills", "20", "--seed", "1"]),
    ],
)
def test_args_are_words(make, text, words):
    words = text.split() if words is None else words
    for target, before in {
        "test": ["-m", "pytest", "-n", "2", "--dist", "loadfile"],
        "demo": ["examples/demo/run.py"],
        "chaos": ["tests/dist/chaos.py"],
        "fuzz": ["-m", "pytest", "-m", "fuzz", "tests/fuzz"],
    }.items():
        done, recorded = make(target, f"ARGS={text}")
        assert done.returncode == 0, done.stderr
        assert recorded[-1] == before + words
    _, recorded = make("stage1", "DATA=d", "RUN=r", f"ARGS={text}")
    assert recorded[-1] == ["train", "launch/recipes/stage1.yaml", "--gpus", "1", "data=d", "run=r", *words]


def test_an_open_quote_is_refused(make):
    done, words = make("test", "ARGS=-k 'magc")
    assert (done.returncode, words) == (2, [])
    assert b"error: ARGS: a quote is not closed" in done.stderr


@pytest.mark.parametrize("name", ["VENV", "CONSTRAINTS", "NEWEST", "OLDEST"])
@pytest.mark.parametrize("value", [VALUES[n] for n in VALUES if n not in ("plain", "umlaut")])
def test_a_value_that_cannot_be_quoted_is_refused(make, name, value):
    done, words = make("test", f"{name}={value}")
    assert (done.returncode, words) == (2, [])
    assert f"error: {name} holds a space or a special letter".encode() in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_is_missing_is_named(make):
    done, words = make("stage1", "RUN=r")
    assert (done.returncode, words) == (2, [])
    assert b"error: DATA is missing" in done.stderr


def test_the_interpreter_is_quoted(make, tmp_path):
    shutil.rmtree(tmp_path / "venv")
    done, _ = make("setup", "PYTHON=touch victim;")
    assert done.returncode == 2
    assert b"error: touch victim; is not installed" in done.stderr
    done, _ = make("setup", "PYTHON=true", "VENV_ARGS=--system-site-packages; touch victim")
    assert done.returncode == 2  # no pip in venv/bin
