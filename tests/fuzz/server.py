"""Fork processes that fuzz formats: python -m tests.fuzz.server ROOT, with requests on stdin and results on stdout.

A request is {"format", "first", "rounds"}; each line of the answer is a round, {"seed", "said", "problems"}, and the
last is {"end": true}. The server imports everything once. Its children, two at a time, each run some rounds; a child
that hangs or dies ends its round, and the next round gets a new child.
"""

import contextlib
import gc
import importlib
import json
import os
import pickle
import pkgutil
import select
import signal
import subprocess
import sys
import time
import traceback
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import typer

import data_prep
import ma2mba
from ma2mba.cli.app import app
from ma2mba.files import sha256_file
from ma2mba.video import pool

LANES = 2
ROUNDS_PER_CHILD = 100
HANG_SECONDS = 30.0
SKIPPED = (
    "triton",
    "ray_executor",
    "ray_app",
    "__main__",
    "adapters",
    "decord_reader",
    "plots",
    "lmms_eval",
    "hf.code",
)


def import_everything() -> None:
    os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)  # PyTorch sets it, in the tests' process, and then makes the folder
    for package in (ma2mba, data_prep):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not any(word in module.name for word in SKIPPED):
                importlib.import_module(module.name)
    torch.set_num_threads(1)


class Forked:
    """A worker of `ma2mba.video.pool`, as a fork: it starts in 30 ms, because nothing must be imported again."""

    def __init__(self, command: list[str], pass_fds: list[int], stdin: int):
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            (kept,) = pass_fds
            os.closerange(3, kept)
            os.closerange(kept + 1, 1024)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            sys.argv = ["-c", command[-1]]
            with contextlib.suppress(BaseException):
                exec(command[-2], {})
            os._exit(0)

    def poll(self) -> int | None:
        if self.returncode is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if done else None
        return self.returncode

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def keep_command_line() -> None:
    """Build the parser of the command line once, not for every command."""
    build, parser = typer.main.get_command, typer.main.get_command(app)
    typer.main.get_command = lambda given: parser if given is app else build(given)


def keep_prices(kept: dict[str, Any]) -> None:
    """Keep the prices of a model's layers: to price one takes 0.3 s, and most rounds have the same model."""
    from ma2mba.training.fit import pricing

    price = pricing._price

    def keep(model: Any, setup: Any, workload: Any, machine: Any) -> Any:
        key = repr((setup, workload, machine.priced, machine.graphs))
        if key not in kept:
            kept[key] = price(model, setup, workload, machine)
        return kept[key]

    pricing._price = keep


@dataclass
class Child:
    """A process and the end of its pipe. `round`: the seed of the round that it is in, `doing`: the command."""

    process: int
    pipe: int
    rest: bytes = b""
    round: int = 0
    doing: str = ""
    heard: float = 0.0


def start(root: Path, lane: int, form: str, seeds: list[int]) -> Child:
    theirs, ours = os.pipe()
    process = os.fork()
    if process == 0:
        os.setsid()
        os.close(theirs)
        work(root, lane, form, seeds, ours)
    os.close(ours)
    return Child(process, theirs, round=seeds[0], heard=time.monotonic())


def work(root: Path, lane: int, form: str, seeds: list[int], pipe: int) -> None:
    """Run the rounds of a child, and report each on the pipe."""
    from tests.fuzz import bases
    from tests.fuzz.formats import formats
    from tests.fuzz.sandbox import Sandbox

    def tell(**facts: Any) -> None:
        os.write(pipe, json.dumps(facts).encode() + b"\n")

    code = 1
    try:
        sandbox = Sandbox(root, lane, lambda line: tell(doing=line))
        chosen = formats(bases.FORMATS)[form]
        for seed in seeds:
            tell(begin=seed)
            said, problems = sandbox.round(form, chosen, seed)
            tell(seed=seed, said=said, problems=problems)
            if problems:
                break  # what it left in this process must not change the next rounds
        code = 0
    except BaseException as error:
        tell(seed=seed, said="harness", problems=[f"harness: {error!r} {traceback.format_exc()[-1500:]}"])
    finally:
        os._exit(code)


def fuzz(root: Path, form: str, first: int, rounds: int, answer: Any) -> None:
    """Run rounds of a format in LANES children at a time. What hangs must hang again in a child of its own to count."""
    waiting, again = deque(range(first, first + rounds)), set[int]()
    running: dict[int, Child] = {}

    def refill(lane: int) -> None:
        if waiting:
            count = 1 if waiting[0] in again else min(ROUNDS_PER_CHILD, max(1, len(waiting) // LANES))
            left[lane] = [waiting.popleft() for _ in range(count)]
            running[lane] = start(root, lane, form, left[lane])

    left: dict[int, list[int]] = {}
    for lane in range(LANES):
        refill(lane)
    while running:
        ready, _, _ = select.select([child.pipe for child in running.values()], [], [], 1.0)
        for lane, child in list(running.items()):
            if child.pipe in ready:
                text = os.read(child.pipe, 1 << 20)
                child.heard = time.monotonic()
                *lines, child.rest = (child.rest + text).split(b"\n")
                for facts in map(json.loads, lines):
                    child.round, child.doing = facts.get("begin", child.round), facts.get("doing", child.doing)
                    if "seed" in facts:
                        left[lane].remove(facts["seed"])
                        answer(facts)
                if text:
                    continue
                code = os.waitstatus_to_exitcode(os.waitpid(child.process, 0)[1])
                if code and child.round in left[lane]:
                    answer(_lost(child, f"the process ended with {code}"))
                    left[lane].remove(child.round)
            elif time.monotonic() - child.heard > HANG_SECONDS:
                os.killpg(child.process, signal.SIGKILL)
                os.waitpid(child.process, 0)
                if child.round in again:
                    answer(_lost(child, "hangs"))
                    left[lane].remove(child.round)
                again.add(child.round)
            else:
                continue
            os.close(child.pipe)
            waiting.extendleft(reversed(left[lane]))
            del running[lane]
            refill(lane)


def _lost(child: Child, problem: str) -> dict[str, Any]:
    return {"seed": child.round, "said": "", "problems": [f"{child.doing}: {problem}"]}


def prepare(root: Path, prices: Path) -> None:
    """Make the healthy examples and price their models, in a process of its own, and end it."""
    from tests.fuzz import bases, sandbox

    os.environ["HOME"] = str(root)
    os.chdir(root)
    kept: dict[str, Any] = {}
    code = 1
    try:
        (root / "base").mkdir()
        bases.make(root / "base")
        sandbox.make_canaries(root)
        keep_prices(kept)
        train = ("train", root / "base/train.yaml", f"run={root / 'new'}", "--dry-run")
        for shards in ("shards", "features"):
            bases.command(*train, f"data={root / 'base' / shards}")
        prices.write_bytes(pickle.dumps(kept))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    root = Path(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import_everything()
    pool.subprocess = SimpleNamespace(Popen=Forked, DEVNULL=subprocess.DEVNULL)
    keep_command_line()
    from tests.fuzz import bases, formats

    prices = root / "prices"
    child = os.fork()
    if child == 0:
        prepare(root, prices)
    assert os.waitpid(child, 0)[1] == 0, "the healthy examples cannot be made"
    keep_prices(pickle.loads(prices.read_bytes()))
    os.environ["MA2MBA_CHECKED_TOKENIZERS"] = sha256_file(root / "base/tokenizer.json")
    gc.collect()
    gc.freeze()

    def answer(facts: dict[str, Any]) -> None:
        answers.write(json.dumps(facts) + "\n")
        answers.flush()

    answer({"ready": sorted(formats.formats(bases.FORMATS))})
    for line in sys.stdin:
        request = json.loads(line)
        fuzz(root, request["format"], request["first"], request["rounds"], answer)
        answer({"end": True, "cpu_seconds": sum(os.times()[:4])})


if __name__ == "__main__":
    main()
