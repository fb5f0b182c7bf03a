"""`make demo`: run the whole project on toy videos, with the commands that a user would type, and write a report.

`make demo-long` does the same with a longer training, until the model finds needles in hours of video.

A second call skips finished steps and resumes an interrupted training stage. A changed command or recipe repeats its
step and all later steps.
"""

import argparse
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ma2mba.cli.needle import grid_table
from ma2mba.evaluation.report import build_report, write_report
from ma2mba.files import atomic_write
from ma2mba.terminal import Arguments, Terminal
from ma2mba.training.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
RECIPES = Path("examples/demo/recipes")
STAGES = ("stage1", "stage1_5", "stage2", "stage2_long")
NEEDLES = "needles"
RANKS = 2
PORT = "{port}"
console = Terminal()


@dataclass(frozen=True)
class Size:
    """The size of the demo.

    `toy`: options of `data_prep toy`. `frames` of the evaluations; `lengths` in seconds and `questions` of the needle
    grid. `overrides` of the recipe of every stage, and `long_overrides` of the last one's.
    """

    toy: dict[str, int | str]
    frames: tuple[str, ...]
    lengths: str
    questions: int = 96
    overrides: tuple[str, ...] = ()
    long_overrides: tuple[str, ...] = ()


def toy(videos: int, short: int, stills: int, clips: int, held_out: int, seconds: str) -> dict[str, int | str]:
    """Return options of `data_prep toy`, without those of the marathons."""
    counts: dict[str, int | str] = {"videos": videos, "short": short, "stills": stills, "clips": clips}
    return counts | {"held-out": held_out, "seconds": seconds}


FULL = Size(
    toy(240, 480, 2400, 480, 48, "60:120") | {"marathons": 160, "marathon-seconds": "300:1000"},
    ("2", "4", "8", "16", "32", "1fps"),
    "60,600,3600",
)
LONG = replace(
    FULL,
    toy=FULL.toy | {"marathons": 300, "marathon-seconds": "200:3600"},
    lengths="60,600,3600,7200",
    long_overrides=("epochs=8",),
)
TINY = Size(
    toy(2, 2, 4, 2, 2, "6:8") | {"marathons": 2, "marathon-seconds": "10:12"},
    ("8", "1fps"),
    "4,8",
    11,
    overrides=("epochs=null", "steps=2", "global_batch=4", "micro_batch=2"),
)
NEEDLE_SEED = 18
"""The needle grid has its own random numbers: no training video is drawn from them, whatever the seed."""


@dataclass(frozen=True)
class Step:
    """A command, its output, the recipe that it reads, and whether the command resumes after an interruption."""

    name: str
    command: tuple[str, ...]
    output: Path | None = None
    recipe: Path | None = None
    resumes: bool = False

    @property
    def fingerprint(self) -> str:
        recipe = (ROOT / self.recipe).read_bytes() if self.recipe else b""
        return hashlib.sha256("\0".join(self.command).encode() + recipe).hexdigest()


def main() -> int:
    """Run the unfinished steps and write the report. Return the exit code of the first command that fails."""
    arguments = parse_arguments()
    size = TINY if arguments.tiny else LONG if arguments.long else FULL
    target = "demo-long" if arguments.long else "demo"
    out: Path = arguments.out or Path("runs") / target
    if arguments.fresh:
        shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    journal = Journal(out / "steps.json")
    for step in [*training_steps(out, size), *trial_steps(out, size)]:
        code = journal.run(step)
        if code:
            console.error(f"{step.name} failed (exit code {code}); `make {target}` resumes there")
            return code
    finish(out, size, journal.seconds())
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = Arguments(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="output folder (default: runs/demo, or runs/demo-long)")
    parser.add_argument("--fresh", action="store_true", help="remove the output folder first")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--tiny", action="store_true", help="two videos and two steps a stage, as a check")
    size.add_argument("--long", action="store_true", help="train longer, and look for needles in two hours of video")
    return parser.parse_args()


def training_steps(out: Path, size: Size) -> list[Step]:
    """Return the steps that make videos and shards, and train the stages."""
    corpus = out / "toy"
    options = [f"--{name}={value}" for name, value in size.toy.items()]
    steps = [Step("toy videos", ("python", "-m", "data_prep", "toy", f"--out={corpus}", *options), corpus)]
    for stage in STAGES:
        shards = out / "shards" / stage
        build = ("python", "-m", "data_prep", "build", str(corpus / f"{stage}.yaml"), "--out", str(shards))
        steps.append(Step(f"shards {stage}", build, shards, resumes=True))
    before = None
    for stage in STAGES:
        recipe, run = RECIPES / f"{stage}.yaml", out / stage
        overrides = [f"data={out / 'shards' / stage}", f"run={run}", *([f"init_from={before}"] if before else [])]
        overrides += size.long_overrides if stage == STAGES[-1] else ()
        launch = (
            "deepspeed",
            "--quiet",
            f"--num_gpus={RANKS}",
            f"--master_port={PORT}",
            "launch/train.py",
            str(recipe),
        )
        steps.append(Step(stage, (*launch, *overrides, *size.overrides), run, recipe, resumes=True))
        before = run
    return steps


def trial_steps(out: Path, size: Size) -> list[Step]:
    """Return the steps that export the model, ask a question, evaluate at every number of frames, and find needles."""
    model, task = out / "model", out / "toy" / "eval.jsonl"
    export = ("ma2mba", "export", str(out / STAGES[-1]), "--out", str(model))
    ask = ("ma2mba", "ask", str(out / "toy/media/heldout/00000.mp4"), "Which symbol appeared?", "--model", str(model))
    steps = [Step("export", export, model), Step("ask", ask)]
    for frames in size.frames:
        result = out / f"eval-{frames}"
        options = ("--model", str(model), "--task", str(task), "--frames", frames, "--out", str(result))
        only = () if frames == "1fps" else ("--only", "needle")
        steps.append(Step(f"eval {frames}", ("ma2mba", "eval", *options, *only), result, resumes=True))
    grid = ("--lengths", size.lengths, "--questions", str(size.questions), "--seed", str(NEEDLE_SEED), "--hide-options")
    found = ("ma2mba", "eval", "--needle", "--model", str(model), *grid, "--out", str(out / NEEDLES))
    steps.append(Step(NEEDLES, found, out / NEEDLES, resumes=True))
    return steps


class Journal:
    """A file with the finished steps, their commands and their durations."""

    def __init__(self, path: Path):
        self.path = path
        self.entries: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}

    def run(self, step: Step) -> int:
        """Run a step unless it is finished. Return the exit code."""
        entry = self.entries.get(step.name, {})
        same = entry.get("fingerprint") == step.fingerprint
        if same and entry["finished"] and (step.output is None or step.output.exists()):
            console.print(f"✓ {step.name} finished earlier, in {entry['seconds']:.0f} s", style="green")
            return 0
        if step.output and not (same and step.resumes):
            remove(step.output)
        before = entry["seconds"] if same and step.resumes else 0.0
        self._forget_from(step)
        began = time.monotonic()
        self._note(step, before, finished=False)
        code = execute(step)
        self._note(step, before + time.monotonic() - began, finished=code == 0)
        return code

    def seconds(self) -> dict[str, float]:
        return {name: round(entry["seconds"], 1) for name, entry in self.entries.items()}

    def _forget_from(self, step: Step) -> None:
        names = list(self.entries)
        if step.name in names:
            self.entries = {name: self.entries[name] for name in names[: names.index(step.name)]}

    def _note(self, step: Step, seconds: float, *, finished: bool) -> None:
        self.entries[step.name] = {"fingerprint": step.fingerprint, "seconds": seconds, "finished": finished}
        with atomic_write(self.path) as file:
            json.dump(self.entries, file, indent=1)


def execute(step: Step) -> int:
    """Print a step's command and run it from the repository's root, with this interpreter's tools."""
    command = [str(free_port()).join(word.split(PORT)) for word in step.command]
    console.rule(Text(step.name, "bold"), align="left")
    console.print(f"$ {shlex.join(command)}", style="cyan", soft_wrap=True)
    tools = {"python": [sys.executable], "ma2mba": [sys.executable, "-m", "ma2mba"]}
    tools["deepspeed"] = [str(Path(sys.executable).with_name("deepspeed"))]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {"OMP_NUM_THREADS": "1"} | os.environ | {"PYTHONPATH": path, "DS_ACCELERATOR": "cpu"}
    return subprocess.run([*tools[command[0]], *command[1:]], env=environment, cwd=ROOT, check=False).returncode


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def finish(out: Path, size: Size, seconds: dict[str, float]) -> None:
    """Write the report and print it."""
    results = {frames: json.loads((out / f"eval-{frames}" / "report.json").read_text()) for frames in size.frames}
    needles = json.loads((out / NEEDLES / "report.json").read_text())["needle_grid"]
    report = build_report(out / "model", results, {stage: out / stage for stage in STAGES}, seconds, needles)
    numbers, picture = write_report(report, out)
    console.rule(Text("report", "bold"), align="left")
    record = results[size.frames[-1]]["records"][0]
    said, right = record["prediction"], record["answer"]
    console.print(f"{Path(record['video']).name}: {record['question']} {said!r}, where {right!r} is right")
    console.print(f"needle: {report['questions']} questions about held-out videos")
    table = Table()
    table.add_column("frames")
    table.add_column("right", justify="right")
    for frames, accuracy in report["accuracy_by_frames"].items():
        table.add_row("1 a second" if frames == "1fps" else frames, f"{accuracy:.0%}")
    table.add_row("by chance", f"{100 * report['chance']:.3g}%", style="dim")
    console.print(table)
    console.print("needles found at each depth, in per cent")
    console.print(grid_table(needles))
    rates = ", ".join(f"{stage} {rate:,.0f}" for stage, rate in report["tokens_per_second"].items() if rate)
    console.print(f"tokens a second: {rates or 'not measured'}; {sum(seconds.values()) / 60:.1f} minutes in all")
    for what, path in (("model", out / "model"), ("report", numbers), ("picture", picture)):
        console.print(f"{what:8} {path}")


if __name__ == "__main__":
    sys.exit(main())
