"""`make chaos`: one training run is killed again and again at random moments and must end as if it had been left alone.

The same recipe is trained twice on the same number of ranks: undisturbed, and killed by SIGKILL (one rank, all ranks,
or the launcher and all ranks; half of the times in a save) and started again by the same command each time. After every
kill the checkpoint that `latest` names must be whole to the last byte; at the end the weights, the optimizer's state
and every logged loss must be the same, bit for bit. Exit code 1 when they are not.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.demo.run import RECIPES, TINY, Journal, training_steps
from ma2mba.training.checkpoint.folder import CHECKPOINTS, OPTIMIZER, STATE_HASH, is_complete, latest
from ma2mba.training.launcher import free_port, ranks_of

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 900
DEMO = ("steps=40", "global_batch=4", "micro_batch=1", "checkpoint={every: 2, keep_last: 2}", "log_every=1")


@dataclass(frozen=True)
class Kill:
    """One kill: when (seconds after the start of that attempt), whom, after which logged step, and what it met."""

    number: int
    seconds: float
    victim: str
    step: int
    phase: str
    latest: str | None
    whole: bool


@dataclass(frozen=True)
class Pace:
    """Of a run: its steps, and seconds of one and of a save."""

    steps: int
    step_seconds: float
    save_seconds: float


def main() -> int:
    arguments = parse_arguments()
    console = Console(stderr=True, highlight=False)
    shutil.rmtree(arguments.out / "undisturbed", ignore_errors=True)
    shutil.rmtree(arguments.out / "killed", ignore_errors=True)
    recipe, overrides = arguments.recipe, arguments.overrides
    if recipe is None:
        recipe, overrides = demo_recipe(arguments.out), [*DEMO, *overrides]
    arguments.out.mkdir(parents=True, exist_ok=True)
    start = Starter(recipe, overrides, arguments.ranks, arguments.out)
    pace = pace_of(undisturbed(start))
    console.print(f"undisturbed: {pace.steps} steps of {pace.step_seconds:.2f} s, saves of {pace.save_seconds:.2f} s")
    kills = disturb(start, pace, arguments.kills, random.Random(arguments.seed), console)
    differences = compare(arguments.out / "undisturbed", arguments.out / "killed")
    differences += [f"after kill {kill.number} {kill.latest} was not whole" for kill in kills if not kill.whole]
    report = {"seed": arguments.seed, "ranks": arguments.ranks, "pace": asdict(pace)}
    report |= {"kills": [asdict(kill) for kill in kills], "differences": differences}
    show(console, kills, differences)
    if arguments.json:
        print(json.dumps(report, indent=1))
    return 1 if differences else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", type=Path, help="what to train (the demo's first stage, made small)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for launch/train.py")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the victims")
    parser.add_argument("--out", type=Path, default=Path("runs/chaos"), help="where both runs go (runs/chaos)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser.parse_intermixed_args()


def demo_recipe(out: Path) -> Path:
    """The demo's first recipe, with its data made where they belong."""
    journal = Journal(out / "steps.json")
    for step in training_steps(out, TINY):
        if step.name in ("toy videos", "shards stage1") and journal.run(step):
            raise SystemExit(f"{step.name} failed")
    written = out / "recipe.yaml"
    text = (ROOT / RECIPES / "stage1.yaml").read_text(encoding="utf-8")
    written.write_text(text.replace("../../../runs/demo/shards", "shards"), encoding="utf-8")
    return written


@dataclass(frozen=True)
class Starter:
    """Starts the same training as often as asked, in the run folder `out / name`."""

    recipe: Path
    overrides: list[str]
    ranks: int
    out: Path
    script: Path = ROOT / "launch" / "train.py"

    @contextmanager
    def __call__(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        """The launcher, in a session that ends with the context."""
        launcher = Path(sys.executable).with_name("deepspeed")
        command = [sys.executable, str(launcher), "--quiet", f"--num_gpus={self.ranks}", f"--master_port={free_port()}"]
        command += [str(self.script), str(self.recipe), *self.overrides, f"run={self.out / name}"]
        environment = {"OMP_NUM_THREADS": "1"} | os.environ | {"DS_ACCELERATOR": "cpu"}
        with (self.out / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def undisturbed(start: Starter) -> Path:
    """Train to the end and leave it alone; returns the run folder."""
    to_the_end(start, "undisturbed")
    return start.out / "undisturbed"


def to_the_end(start: Starter, name: str) -> None:
    """Raises SystemExit when the training fails."""
    with start(name) as process:
        if process.wait(LIMIT_SECONDS):
            raise SystemExit(f"{name}: exit code {process.returncode}; see {start.out / f'{name}.log'}")


def pace_of(run: Path) -> Pace:
    """Steps and seconds of a finished run, as the times of the files of its last two checkpoints tell."""
    before, last = sorted((run / CHECKPOINTS).glob("step-*"), key=lambda folder: int(folder.name[5:]))[-2:]
    begun = [min(p.stat().st_mtime for p in (folder / OPTIMIZER).iterdir()) for folder in (before, last)]
    ended = [(folder / STATE_HASH).stat().st_mtime for folder in (before, last)]
    steps = [int(folder.name[5:]) for folder in (before, last)]
    return Pace(steps[1], (begun[1] - ended[0]) / (steps[1] - steps[0]), ended[1] - begun[1])


def disturb(start: Starter, pace: Pace, count: int, chance: random.Random, console: Console) -> list[Kill]:
    """Train the same with kills spread over the whole run; returns them when the run has come to its end."""
    kills = []
    slices = [1 + (pace.steps - 1) * k // count for k in range(count + 1)]
    for number in range(1, count + 1):
        target = chance.randrange(slices[number - 1], max(slices[number - 1] + 1, slices[number] - 1))
        kill = kill_once(start, pace, number, target, chance)
        kills.append(kill)
        console.print(f"kill {number}: {kill.victim} after step {kill.step}, {kill.phase}; latest {kill.latest}")
    to_the_end(start, "killed")
    return kills


def kill_once(start: Starter, pace: Pace, number: int, target: int, chance: random.Random) -> Kill:
    """Start, wait for a moment at or after the step `target`, kill, and wait until nothing is left."""
    run, began = start.out / "killed", time.monotonic()
    before = saves(run)
    with start("killed") as process:
        wait_for(lambda: last_step(run) >= target, process)
        ranks = sorted(ranks_of(process.pid), key=lambda rank: rank.cmdline())  # by --local_rank
        victim = chance.choice([*(f"rank {i}" for i in range(start.ranks)), "all ranks", "launcher and ranks"])
        victims = ranks if "ranks" in victim else [ranks[int(victim.split()[1])]]
        if number % 2:
            wait_for(lambda: bool(saves(run) - before), process)
            time.sleep(chance.uniform(0, pace.save_seconds))
        else:
            time.sleep(chance.uniform(0, pace.step_seconds))
        if victim == "launcher and ranks":
            os.killpg(process.pid, signal.SIGKILL)
        for rank in victims:
            with suppress(psutil.NoSuchProcess):
                rank.kill()
        seconds, step = time.monotonic() - began, last_step(run)
        process.wait(LIMIT_SECONDS)
        gone(ranks)
    newest = latest(run)
    whole = newest is None or is_complete(newest)
    return Kill(number, round(seconds, 3), victim, step, phase(run, before), newest.name if newest else None, whole)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + LIMIT_SECONDS
    while not condition():
        if process.poll() is not None or time.monotonic() > limit:
            raise SystemExit(f"killed: the run ended by itself (exit code {process.poll()}) before it was killed")
        time.sleep(0.001)


def gone(ranks: list[psutil.Process]) -> None:
    """The next attempt begins when no process of this one is left."""
    _, alive = psutil.wait_procs(ranks, timeout=LIMIT_SECONDS)
    if alive:
        raise SystemExit(f"{len(alive)} ranks were still there {LIMIT_SECONDS} s after the launcher had gone")


def saves(run: Path) -> set[tuple[str, int]]:
    """Checkpoints that are being written, or were when the run was killed; each save is another inode."""
    found = set()
    for path in (run / CHECKPOINTS).glob(".step-*[0-9].tmp"):
        with suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_ino))
    return found


def phase(run: Path, before: set[tuple[str, int]]) -> str:
    """What a kill has met, as the folder tells; `before` are the saves that earlier kills have left."""
    newest, folders = latest(run), sorted((run / CHECKPOINTS).glob("step-*"))
    if saves(run) - before:
        return "in a save"
    if folders and newest != folders[-1]:
        return "between a save and latest"
    return "removing an old one" if any((run / CHECKPOINTS).glob(".step-*.old.tmp")) else "in a step"


def last_step(run: Path) -> int:
    """The last step in metrics.jsonl, 0 before the first."""
    lines = metrics(run)
    return lines[-1]["step"] if lines else 0


def metrics(run: Path) -> list[dict]:
    path = run / "metrics.jsonl"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def compare(undisturbed: Path, killed: Path) -> list[str]:
    """What differs between the two runs."""
    ours, theirs = ([(m["step"], m["loss"], m["gradient_norm"]) for m in metrics(run)] for run in (killed, undisturbed))
    differences = [] if ours == theirs else ["metrics.jsonl: other losses or gradient norms"]
    end, expected = latest(killed), latest(undisturbed)
    if end is None or expected is None or end.name != expected.name:
        return [*differences, f"latest is {end} and not {expected}"]
    weights = (Path("model/model.safetensors"), *(p.relative_to(expected) for p in (expected / OPTIMIZER).iterdir()))
    return differences + [f"{name}: other bytes" for name in map(str, weights) if differ(end / name, expected / name)]


def differ(ours: Path, theirs: Path) -> bool:
    return ours.read_bytes() != theirs.read_bytes()


def show(console: Console, kills: list[Kill], differences: list[str]) -> None:
    table = Table()
    for column in ("kill", "seconds", "victim", "after step", "phase", "latest", "whole"):
        table.add_column(column)
    for kill in kills:
        cells = (kill.number, kill.seconds, kill.victim, kill.step, kill.phase, kill.latest)
        table.add_row(*map(str, cells), "yes" if kill.whole else "NO")
    console.print(table)
    in_saves = sum(kill.phase != "in a step" for kill in kills)
    console.print(f"{in_saves} of {len(kills)} kills fell in a save")
    for text in differences:
        console.print(f"[bold red]different:[/] {text}")
    if not differences:
        console.print("[green]the run ended bit for bit as the undisturbed one[/]")


if __name__ == "__main__":
    sys.exit(main())
