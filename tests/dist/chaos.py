"""`make chaos`: kill a training run at random moments, resume it, and compare its end with an undisturbed run.

Both runs train the same recipe on the same number of ranks. One run is undisturbed. The other is killed by SIGKILL (one
rank, all ranks, or the launcher and all ranks; every second kill falls into a save, which is written while steps go on)
and resumed by the same command.
After every kill the checkpoint that `latest` names must be whole to the last byte. At the end the weights, the
optimizer's state and every logged loss must be equal, bit for bit. Exits with code 1 if they differ.
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
from ma2mba.training.launcher import ranks_of
from ma2mba.training.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 900
DEMO = ("steps=40", "global_batch=4", "micro_batch=1", "checkpoint={every: 2, keep_last: 2}", "log_every=1")


@dataclass(frozen=True)
class Kill:
    """One kill: its time (seconds after the attempt's start), victim, last logged step, and the phase it hit."""

    number: int
    seconds: float
    victim: str
    step: int
    phase: str
    latest: str | None
    whole: bool


@dataclass(frozen=True)
class Pace:
    """The pace of a run: its number of steps, seconds a step, and seconds for which a save is written."""

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
    parser.add_argument("recipe", nargs="?", type=Path, help="recipe (default: the demo's first stage, made small)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for launch/train.py")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments and the victims")
    parser.add_argument("--out", type=Path, default=Path("runs/chaos"), help="output folder (default: runs/chaos)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser.parse_intermixed_args()


def demo_recipe(out: Path) -> Path:
    """Return the demo's first recipe, after making its data."""
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
    """Starts the same training again and again, in the run folder `out / name`."""

    recipe: Path
    overrides: list[str]
    ranks: int
    out: Path
    script: Path = ROOT / "launch" / "train.py"

    @contextmanager
    def __call__(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        """Start the launcher, in a session that ends with the context."""
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
    """Train to the end without a kill. Return the run folder."""
    to_the_end(start, "undisturbed")
    return start.out / "undisturbed"


def to_the_end(start: Starter, name: str) -> None:
    """Train to the end. Raise SystemExit if training fails."""
    with start(name) as process:
        if process.wait(LIMIT_SECONDS):
            raise SystemExit(f"{name}: exit code {process.returncode}; see {start.out / f'{name}.log'}")


def pace_of(run: Path) -> Pace:
    """Return the pace of a finished run, from the file times of its last two checkpoints."""
    before, last = sorted((run / CHECKPOINTS).glob("step-*"), key=lambda folder: int(folder.name[5:]))[-2:]
    begun = [min(p.stat().st_mtime for p in (folder / OPTIMIZER).iterdir()) for folder in (before, last)]
    ended = [(folder / STATE_HASH).stat().st_mtime for folder in (before, last)]  # steps go on until then
    steps = [int(folder.name[5:]) for folder in (before, last)]
    return Pace(steps[1], (begun[1] - begun[0]) / (steps[1] - steps[0]), ended[1] - begun[1])


def disturb(start: Starter, pace: Pace, count: int, chance: random.Random, console: Console) -> list[Kill]:
    """Train the same recipe with kills spread over the whole run. Return the kills at the end of the run."""
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
    """Start, kill at a random moment at or after the step `target`, and wait until no process is left."""
    run, began = start.out / "killed", time.monotonic()
    before, opened = saves(run), metrics_inode(run)
    with start("killed") as process:
        wait_for(lambda: metrics_inode(run) != opened and last_step(run) >= target, process)
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
            raise SystemExit(f"killed: the run ended (exit code {process.poll()}) before it was killed")
        time.sleep(0.001)


def gone(ranks: list[psutil.Process]) -> None:
    """Wait until no rank of this attempt is left."""
    _, alive = psutil.wait_procs(ranks, timeout=LIMIT_SECONDS)
    if alive:
        raise SystemExit(f"{len(alive)} ranks still ran {LIMIT_SECONDS} s after the launcher ended")


def saves(run: Path) -> set[tuple[str, int]]:
    """Return the unfinished saves in a run folder. Each save has its own inode."""
    found = set()
    for path in (run / CHECKPOINTS).glob(".step-*[0-9].tmp"):
        with suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_ino))
    return found


def phase(run: Path, before: set[tuple[str, int]]) -> str:
    """Return the phase that a kill hit, read from the run folder. `before` are unfinished saves of earlier kills."""
    newest, folders = latest(run), sorted((run / CHECKPOINTS).glob("step-*"))
    if saves(run) - before:
        return "in a save"
    if folders and newest != folders[-1]:
        return "between a save and latest"
    return "removing an old one" if any((run / CHECKPOINTS).glob(".step-*.old.tmp")) else "in a step"


def last_step(run: Path) -> int:
    """Return the last step in metrics.jsonl, 0 before the first step."""
    lines = metrics(run)
    return lines[-1]["step"] if lines else 0


def metrics_inode(run: Path) -> int | None:
    """Return the inode of metrics.jsonl: each launch writes a new file when its ranks have joined."""
    path = run / "metrics.jsonl"
    return path.stat().st_ino if path.is_file() else None


def metrics(run: Path) -> list[dict]:
    path = run / "metrics.jsonl"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def compare(undisturbed: Path, killed: Path) -> list[str]:
    """Return the differences between the two runs."""
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
    console.print(f"{in_saves} of {len(kills)} kills fell into a save")
    for text in differences:
        console.print(f"[bold red]different:[/] {text}")
    if not differences:
        console.print("[green]the run ended bit for bit like the undisturbed run[/]")


if __name__ == "__main__":
    sys.exit(main())
