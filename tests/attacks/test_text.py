"""Recipes, overrides, ZeRO policies and hostfiles from strangers: read exactly, or refused in one line."""

import json
import os
import time
from glob import glob

import pytest
import yaml

from data_prep import recipe as data_recipe
from ma2mba.errors import UserError
from ma2mba.training import nodes
from ma2mba.training.recipe.loading import load_recipe
from ma2mba.training.world import load_policy
from tests import forked

TRAIN = {"stage": "stage1", "data": "d", "run": "r", "init_from": "m", "trainable": {"projector": 1.0}, "steps": 1}
DATA = {"stage": "stage1", "tokenizer": "t.json", "sources": [{"format": "llava", "annotations": "a", "media": "."}]}
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
TEXTS = {
    "bomb": LAUGHS,
    "date": "steps: 2026-02-30\n",
    "digits": "seed: " + "9" * 5000,
    "hexadecimal": "seed: 0x" + "f" * 10_000,
    "sexagesimal": "seed: " + ":".join(["59"] * 3000),
    "twice": "stage: stage2\n",
    "deep": "seed: " + "[" * 5000,
    "nan": "clip: .nan",
    "infinite": "clip: 1.0e+400",
    "number key": "1: 2",
    "list key": "? [a, b]\n: c",
    "null": 'zero_config: "a\\0b"',
    "surrogate": 'zero_config: "a\\ud800b"',
    "no path": "zero_config: " + "a" * 100_000,
    "huge value": "clip: " + "x" * 900_000,
    "huge key": '? "' + "x" * 900_000 + '"\n: 1',
    "huge tag": "clip: !" + "x" * 900_000 + " 1",
    "huge alias": "clip: *" + "x" * 900_000,
    "many problems": "\n".join(f"k{i}: 1" for i in range(3000)),
    "large": "#" * 2_000_000,
    "not UTF-8": b"clip: \xff\xfe",
}


def with_text(values, text):
    return yaml.safe_dump(values, sort_keys=False).encode() + (text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("kind", ["train", "plan", "data"])
def test_a_recipe_is_refused_in_few_words(tmp_path, kind, name):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(with_text(DATA if kind == "data" else TRAIN | {"global_batch": 1}, TEXTS[name]))
    commands = {
        "train": ("train", path, "--dry-run"),
        "plan": ("plan", "--model", path, "--tokens", 100, "--device-memory", 80),
        "data": ("data", "build", path, "--out", tmp_path / "out", "--dry-run"),
    }
    outcome = forked.run(*commands[kind], limit_s=30)
    assert outcome.refused, outcome.err[-500:]
    assert "recipe.yaml" in outcome.err
    assert len(outcome.err) < 20_000
    assert max(map(len, outcome.err.splitlines())) < 1500
    assert len(outcome.err.splitlines()) == 1 or name in ("many problems", "no path")
    assert outcome.peak_mb < 1000


OVERRIDES = {
    "date": "run=2026-02-30",
    "digits": "seed=" + "9" * 5000,
    "hexadecimal": "seed=0x" + "9" * 5000,
    "deep value": "seed=" + "[" * 5000,
    "deep key": ".".join(["data"] * 3000) + "=1",
    "deep unknown key": ".".join("a" * 20_000) + "=1",
    "twice": "trainable={projector: 1, projector: 2}",
    "infinite": "clip=1e400",
    "infinite float": "clip=1.0e+400",
    "nan": "clip=.nan",
    "null": 'data="a\\0"',
    "long": "clip=" + "x" * 100_000,
    "no path": "run=" + "x" * 100_000,
    "number key": "trainable={1: 2}",
    "alias": "data=" + "&a [*a]",
}


@pytest.mark.parametrize("name", OVERRIDES)
def test_an_override_is_refused_in_one_line(tmp_path, name):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(TRAIN | {"global_batch": 1}))
    with pytest.raises(UserError) as refused:
        load_recipe(path, [OVERRIDES[name]])
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 1500


def test_a_link_to_itself_is_no_path_and_no_recipe(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for arguments in [(loop,), ("stage1", f"data={loop}")]:
        outcome = forked.run("train", *arguments, "--dry-run")
        assert outcome.refused, outcome.err
    os.mkfifo(tmp_path / "fifo")
    outcome = forked.run("train", tmp_path / "fifo", "--dry-run", limit_s=20)
    assert outcome.refused
    assert "not a regular file" in outcome.err


def test_links_that_lead_back_do_not_hang_a_pattern(tmp_path):
    """`glob` follows each link again at each depth: 2 ** 40 folders."""
    for name in "abc":
        (tmp_path / name).symlink_to(tmp_path)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/x.json").touch()
    (tmp_path / "deep/back").symlink_to(tmp_path)
    began = time.monotonic()
    assert data_recipe._expand("**/*.json", tmp_path) == ["deep/x.json"]
    assert time.monotonic() - began < 5


def test_folders_that_link_to_each_other_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(data_recipe, "MOST_FOLDERS", 1000)
    for name in "abcdefgh":
        (tmp_path / name).mkdir()
    for name in "abcdefgh":
        for other in "abcdefgh":
            (tmp_path / name / other).symlink_to(tmp_path / other)
    with pytest.raises(UserError, match=r"meets 1,000 folders\. Name a folder further down"):
        data_recipe._expand("**/*.json", tmp_path)


@pytest.mark.parametrize(
    "pattern",
    [
        "**/*.json",
        "**/*",
        "*",
        "a/**/*.json",
        "a*/**/b/*.json",
        "**/b/**/*.json",
        "**/*a*/*",
        "{}/**/*.json",
        "**/.h/*",
    ],
)
def test_patterns_match_what_glob_matches(tmp_path, pattern):
    for name in ("x.json", "a/x.json", "a/b/x.json", "a1/b/c/y.json", "a1/b/b/z.json", ".h/x.json", "a/.h/x.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "linked").symlink_to(tmp_path / "a1")
    pattern = pattern.format(tmp_path)
    assert data_recipe._expand(pattern, tmp_path) == sorted(set(glob(pattern, root_dir=tmp_path, recursive=True)))


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        '{"zero_optimization": {"stage": ' + "9" * 5000 + "}}",
        '{"zero_optimization": {"stage": ' + "9" * 2000 + "}}",
        '{"zero_optimization": {"stage": 1e400}}',
        '{"zero_optimization": {"stage": NaN}}',
        '{"zero_optimization": {"stage": true}}',
        '{"zero_optimization": {"stage": [[]]}}',
        '{"zero_optimization": [1]}',
        "[]",
        "null",
        '{"zero_optimization": {"stage": 1, "stage": 2}}',
        json.dumps({"zero_optimization": {"stage": 1}} | {f"key{i}": 1 for i in range(10_000)}),
        json.dumps({"zero_optimization": {"stage": 1}, "x" * 500_000: 1}),
        " " * 2_000_000,
    ],
)
def test_a_policy_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "policy.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"policy\.json") as refused:
        load_policy(str(path))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 1500


@pytest.mark.parametrize(
    "line",
    [
        "node-1 slots=" + "9" * 5000,
        "node-1 slots=999999",
        "node-1 slots=８",
        "-oProxyCommand=touch${IFS}victim slots=1",
        "$(touch${IFS}victim) slots=1",
        "`id` slots=1",
        "node;id slots=1",
        "node-1 slots=1\nnode-1 slots=2",
        "x" * 500_000,
        "#" * 2_000_000,
        "\x1b[31mnode slots=1",
        "\0 slots=1",
    ],
)
def test_a_hostfile_is_refused_in_one_line(tmp_path, line):
    path = tmp_path / "hosts"
    path.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="hosts") as refused:
        nodes.slots(path)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("rank", ["9" * 5000, "²", "1\n"])
def test_a_rank_that_is_no_number_is_refused(tmp_path, rank):
    (tmp_path / "hosts").write_text("me@node-1.example slots=8\n10.0.0.2 slots=8\nfe80::1 slots=1 # comment\n")
    with pytest.raises(UserError, match="not a line of"):
        nodes.options(tmp_path / "hosts", {"NODE_RANK": rank, "MASTER_ADDR": "node-1"})


@pytest.mark.parametrize("content", [LAUGHS, "stage: 2026-02-30", "[" * 5000, "stage: " + "9" * 5000, "a: 1\na: 2"])
def test_the_recipe_of_a_foreign_run_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/recipe.yaml").write_text(content)
    outcome = forked.run("inspect", tmp_path / "run", limit_s=20)
    assert outcome.refused, outcome.err[-500:]
    assert len(outcome.err.splitlines()) == 1
    assert outcome.peak_mb < 1000
