"""The blocks of docs/engine.md and README.md that need no GPU run as they stand, and use the engine in few lines."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml

import ma2mba
from ma2mba.limits import PREFIX, Limits

ROOT = Path(__file__).resolve().parents[2]
LIMITS = fields(Limits)
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = [
    (name, block) for name in ("README.md", "docs/engine.md") for block in BLOCK.findall((ROOT / name).read_text())
]


def test_there_are_blocks():
    assert [name for name, _ in BLOCKS] == ["README.md", *["docs/engine.md"] * 4]


@pytest.mark.parametrize(("name", "block"), BLOCKS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(BLOCKS)])
def test_a_block_runs_and_gives_every_parameter_a_gradient(name, block):
    torch.manual_seed(0)
    names: dict = {"__name__": "block"}
    for page, earlier in BLOCKS:  # a block may use the names of the blocks before it
        if page == name:
            exec(compile(earlier, name, "exec"), names)
            if earlier == block:
                break
    modules = [value for value in names.values() if isinstance(value, torch.nn.Module)]
    parameters = [p for module in modules for p in module.parameters()]
    assert parameters
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in parameters)


def test_the_security_page_lists_every_limit():
    rows = re.findall(
        r"^\| `(MA2MBA_LIMIT_\w+)` \| ([\d,]+) \| (.+) \|$", (ROOT / "SECURITY.md").read_text(), re.MULTILINE
    )
    expected = [(PREFIX + one.name.upper(), f"{one.default:,.0f}", one.metadata["description"]) for one in LIMITS]
    assert rows == expected


def test_the_security_page_names_files_that_exist():
    text = (ROOT / "SECURITY.md").read_text()
    names = re.findall(r"`((?:ma2mba|data_prep|\.ci)/[\w/.-]+)`", text)
    assert len(names) > 15
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == ma2mba.__version__


def test_each_use_takes_under_15_lines():
    """The layer itself is the user's model; imports and the use of it are counted, blank lines are not."""
    page = (ROOT / "docs" / "engine.md").read_text()
    for block in re.findall(r"^```python(?: gpu)?\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[:3]:
        without_layer = re.sub(r"^class .*?(?=^\S(?!lass))", "", block, flags=re.MULTILINE | re.DOTALL)
        lines = [line for line in without_layer.splitlines() if line.strip()]
        assert 5 < len(lines) < 15, lines
