r"""Nothing that a stranger wrote reaches the terminal as an escape, as markup or as an emoji code."""

import ast
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.toy.words import build_tokenizer
from ma2mba.cli.output import print_json
from ma2mba.terminal import error_text, one_line, visible

ROOT = Path(__file__).resolve().parents[2]
EVIL = "\x1b[5;7m\x1b]0;pwned\x07\x9b31m\x7f\u202e[red]:smile:[link=x]y"
SHOWN = r"\x1b[5;7m\x1b]0;pwned\x07\x9b31m\x7f\u202e[red]:smile:[link=x]y"
OWN = re.compile(r"\x1b\[(?:[0-9;]*m|\?25[lh]|2K|1A)|\r")
"""What rich writes by itself: colours, the hidden cursor, and a line that it draws again."""

SCRIPT = r"""
import json, logging, sys, threading, warnings
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from ma2mba.cli.app import main
from ma2mba.cli.writing import print_answers
from ma2mba.cli.eval import _accuracy_table
from ma2mba.cli.output import err, out
from ma2mba.progress import Reporter
from data_prep.audit_report import AuditReport
from data_prep.clips import Reject
from ma2mba.shards.reader import Damage
from data_prep.summary import print_audit, print_summary
from ma2mba.training.rank import refuse, say
from ma2mba.errors import UserError

evil, commands = json.loads(sys.argv[1])
for number, command in enumerate(commands):
    print("$", number)
    with suppress(SystemExit):
        main(command)
    sys.stdout.flush()
class Answers(list):
    answers = [SimpleNamespace(reason=None), SimpleNamespace(reason="end")]
print_answers(Answers([(0, "an "), (0, "answer " + evil[:4]), (0, evil[4:])]), [evil, evil])
means = {"n": 1, "accuracy": 1.0, "chance": 0.5, "ci95": None, "unreadable": 0, "empty": 0, "unparsed": 0}
groups = {"tasks": {evil: means, "b": means}, "lengths": {evil: means, "b": means}}
out.print(_accuracy_table(means | groups | {"headline": "accuracy", "mean_of_tasks": means}))
report = {"already_built": True, "by_dataset": {evil: {"samples": 1}}}
print_summary(Path(evil), report, [Reject(evil, evil, evil, evil)])
damage = [Damage(evil, evil, evil)]
print_audit(AuditReport(Path(evil), 1, 1, 1, damage, [], {evil: evil}))
with err.status(evil):
    err.print(evil)
with Reporter(evil, 3) as reporter:
    reporter.advance(1, evil)
    reporter._last_line = -100
    reporter.advance(1, evil)
refuse(UserError(evil))
say(evil)
logging.getLogger("ma2mba.x").warning("%s", evil)
warnings.warn(evil)
def fail():
    raise RuntimeError(evil)
thread = threading.Thread(target=fail)
thread.start()
thread.join()
fail()
"""


def commands(folder):
    """Write what strangers wrote, and return commands that show it."""
    run = folder / EVIL
    (run / "checkpoints" / f"step-{EVIL}").mkdir(parents=True)
    (run / "recipe.yaml").write_text(json.dumps({"stage": EVIL}))
    build_tokenizer().save(str(folder / "tokenizer.json"))
    records = [{"id": EVIL, "video": f"{EVIL}.mp4", "conversations": [{"from": EVIL, "value": EVIL}]}]
    records += [
        {
            "id": 1,
            "video": f"{EVIL}.mp4",
            "conversations": [{"from": "human", "value": "<video>a"}, {"from": "gpt", "value": "b"}],
        }
    ]
    (folder / "a.json").write_text(json.dumps(records))
    source = {"format": "llava_video", "annotations": "a.json", "media": ".", "name": EVIL}
    recipe = folder / f"{EVIL}.yaml"
    recipe.write_text(json.dumps({"stage": "stage1", "tokenizer": "tokenizer.json", "sources": [source]}))
    return [
        ["inspect", run],
        ["inspect", folder / f"none{EVIL}"],
        ["ask", folder / f"none{EVIL}", EVIL, "--model", EVIL],
        ["eval", "--model", EVIL, "--task", EVIL],
        ["plan", "--model", f"none{EVIL}.yaml", "--tokens", 5, "--device-memory", 80],
        ["plan", "--model", EVIL, f"a={EVIL}", "--tokens", 5, "--device-memory", 80],
        ["train", EVIL],
        ["train", "stage1", f"{EVIL}=1"],
        ["train", "stage1", "--hostfile", EVIL],
        ["data", "build", recipe, "--out", folder / f"out{EVIL}", "--dry-run"],
        ["data", "build", "x", "--out", "y", "--executor", EVIL],
        ["data", "audit", EVIL],
        ["export", EVIL, "--out", EVIL],
        ["replay", EVIL],
        ["recipes", "copy", EVIL, EVIL],
        [f"surprise{EVIL}"],
        [f"--{EVIL}"],
        ["ask", "a", "b", "--model", "c", EVIL],
    ]


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """What the commands write to a pipe, and to a terminal."""
    folder = tmp_path_factory.mktemp("shown")
    texts = [[str(word) for word in command] for command in commands(folder)]
    script = [sys.executable, "-c", SCRIPT, json.dumps([EVIL, texts])]
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "250", "PYTHONPATH": str(ROOT)}
    environment.pop("NO_COLOR", None)
    piped = subprocess.run(script, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, check=False)
    master, slave = pty.openpty()
    with subprocess.Popen(script, stdout=slave, stderr=slave, stdin=slave, env=environment) as process:
        os.close(slave)
        drawn = b""
        while block := _read(master):
            drawn += block
    os.close(master)
    assert process.returncode == piped.returncode == 1  # of the unexpected error at the end
    return {"pipe": piped.stdout.decode(), "terminal": drawn.decode()}


def _read(master):
    try:
        return os.read(master, 65536)
    except OSError:  # the other end is closed
        return b""


@pytest.mark.parametrize("where", ["pipe", "terminal"])
def test_the_only_escapes_are_our_own(shown, where):
    text = shown[where]
    assert "\x1b[5;7m" not in text
    assert "😄" not in text
    assert ("\x1b[1;31m" in text) == (where == "terminal"), "rich's own colours"
    left = OWN.sub("", text)
    assert visible(left) == left
    parts = re.split(r"^\$ ", left, flags=re.MULTILINE)
    for part in parts[1:]:
        assert SHOWN.split("=")[0] in part
    assert parts[-1].count(SHOWN) >= 18


def test_json_holds_no_control_character(capsys):
    print_json({"name": EVIL})
    text = capsys.readouterr().out
    assert text.isascii()
    assert visible(text) == text
    assert json.loads(text) == {"name": EVIL}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\x1b[1m\r\x00\tb\nc", "a\\x1b[1m\\r\\x00\tb\nc".replace("\\r", "\\x0d")),
        ("\x85\u2028\u2066\ufeff\udcff\U000e0041", r"\x85\u2028\u2066\ufeff\udcff\U000e0041"),
        ("naïve 中文 👩\u200d🚀 é\u0301 العربية", "naïve 中文 👩\u200d🚀 é\u0301 العربية"),
    ],
)
def test_only_control_characters_are_escaped(text, expected):
    assert visible(text) == expected
    assert one_line("a\n\tb") == r"a\n\tb"


def test_an_error_is_bounded_and_a_name_cannot_begin_a_line():
    assert error_text("r: 2 problems\n  a\n  b") == "r: 2 problems\n  a\n  b"
    assert error_text("x\nerror: all is lost") == r"x\nerror: all is lost"
    assert len(error_text("x" * 5_000_000)) < 2100
    assert len(error_text("\n  x" * 1_000_000)) < 10_000


DOORS = {
    "Console": ("ma2mba/terminal.py",),
    "print": (
        "ma2mba/cli/output.py",
        "ma2mba/model/tokenizer_probe.py",
        "ma2mba/model/unpickle.py",
        "ma2mba/training/metrics.py",
    ),  # JSON; pipes of ours
    "basicConfig": ("ma2mba/terminal.py",),
    "StreamHandler": ("ma2mba/terminal.py",),
    "ArgumentParser": ("ma2mba/terminal.py",),
    "echo": (),
    "secho": (),
    "print_exc": (),
    "from_markup": (),
    "render_markup": (),
}


def test_nobody_else_opens_a_way_to_the_terminal():
    """Every console is a Terminal; nobody prints, writes to stderr or logs in another way."""
    found = []
    for top in ("ma2mba", "data_prep", "launch", "examples"):
        for path in sorted((ROOT / top).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            found += [f"{name}:{line}: {what}" for line, what in _ways(ast.parse(path.read_text()), name)]
    assert found == []


def _ways(tree, name):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom | ast.Import):
            modules = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            foreign = any(m.startswith(("rich.markup", "rich.console", "rich.print", "click")) for m in modules)
            if foreign and name != "ma2mba/terminal.py":
                yield node.lineno, f"imports {modules}"
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        called = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
        if called == "print" and isinstance(function, ast.Attribute):
            continue  # of a Terminal
        if called in DOORS and name not in DOORS[called]:
            yield node.lineno, called
        if called == "write" and ast.unparse(function).startswith("sys.") and name != "ma2mba/terminal.py":
            yield node.lineno, ast.unparse(function)
        if called == "TextColumn" and "markup=False" not in ast.unparse(node):
            yield node.lineno, "a TextColumn that reads markup"


@pytest.mark.parametrize(
    "code",
    [
        "from rich.console import Console",
        "print(1)",
        "import sys; sys.stderr.write('x')",
        "logging.basicConfig()",
        "typer.echo('x')",
        "Text.from_markup(x)",
        "TextColumn('{x}')",
        "argparse.ArgumentParser()",
    ],
)
def test_another_way_is_found(code):
    assert list(_ways(ast.parse(code), "ma2mba/x.py"))
