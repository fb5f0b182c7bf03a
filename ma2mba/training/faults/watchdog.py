"""A thread that ends this process when a step takes far too long, or when another rank has failed or vanished.

When a step is stuck, every rank writes its activity to RUN/stuck/rank-N.json and the stacks of all its threads to
RUN/stuck/rank-N.txt. The first rank that notices prints a summary on stderr. If not even this thread can run,
faulthandler ends the process.
"""

import faulthandler
import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from ma2mba.files import atomic_write
from ma2mba.terminal import write_error
from ma2mba.training.faults.activity import Activity, describe_activity
from ma2mba.training.faults.failures import (
    EXIT_FAILED,
    EXIT_STUCK,
    STUCK,
    claim_first,
    describe_first_failure,
    first_exit_code,
    first_failure,
)
from ma2mba.training.faults.heartbeat import LOST_SECONDS, Heartbeat
from ma2mba.training.recipe.schema import Watchdog as Limits

POLL_SECONDS = 1.0
PATIENCE_SECONDS = 15.0
"""How long ranks wait for each other's reports, and for their own main thread to end after another rank has failed."""
SLOW_STEPS = 3
"""The first steps get the time limit of a start: they choose kernels and open connections."""
START_SECONDS = 600.0
"""The time limit of a start, or twice the limit of a step if that is longer."""
PACKAGE = str(Path(__file__).resolve().parents[2])


class Watchdog:
    """Watches `activity` and the next rank while the block runs.

    With `limits` None it only ends this rank when another rank has failed.
    """

    def __init__(self, run: Path, rank: int, ranks: int, activity: Activity, limits: Limits | None):
        self.run, self.rank, self.ranks, self.activity, self.limits = run, rank, ranks, activity, limits
        self._main = threading.get_ident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ma2mba-watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    @property
    def limit(self) -> float:
        """Time limit of the current step, start or save, in seconds."""
        if self.limits is None:
            return float("inf")
        if self.activity.timed_steps < SLOW_STEPS:
            return max(START_SECONDS, 2 * self.limits.seconds)
        return max(self.limits.seconds, self.limits.factor * self.activity.usual_seconds)

    def _watch(self) -> None:
        heartbeat = Heartbeat(self.run, self.rank, self.ranks)
        while not self._stop.wait(POLL_SECONDS):
            if self.limits:
                faulthandler.dump_traceback_later(max(START_SECONDS, 2 * self.limits.seconds), exit=True)
                heartbeat.beat()
            if failed := first_failure(self.run):
                self._follow(failed)
            elif self.activity.seconds > self.limit:
                self._report_stuck()
            elif self.limits and heartbeat.lost():
                self._report_lost(heartbeat.next_rank)
        heartbeat.end()

    def _report_stuck(self) -> None:
        """End this rank because its step is stuck, with a summary of all ranks if it is the first to notice."""
        facts = self._facts()
        if not claim_first(self.run, {"rank": self.rank, "what": "was stuck", "exit_code": EXIT_STUCK, **facts}):
            return  # another rank was faster: the next poll follows it
        self._write_report(facts)
        stuck = f"stuck for {self.activity.seconds:.0f} s (the limit is {self.limit:.0f} s)"
        write_error(f"rank {self.rank}: {stuck}: {describe_activity(facts)}\n")
        faulthandler.dump_traceback(all_threads=True)
        self._wait_for_reports()
        ranks = "".join(f"  {line}\n" for line in summary(self.run))
        write_error(
            f"What every rank was doing (stacks of all threads: {self.run / STUCK}):\n{ranks}"
            "All ranks end. If the step was slow but not stuck, raise watchdog.seconds in the recipe.\n"
        )
        self._end(EXIT_STUCK)

    def _report_lost(self, lost: int) -> None:
        """End this rank because rank `lost` has no heartbeat."""
        facts = {"rank": lost, "what": "was lost", "exit_code": EXIT_FAILED, "noticed_by": self.rank}
        if claim_first(self.run, facts):
            write_error(
                f"rank {lost} has sent no heartbeat for {LOST_SECONDS:.0f} s (did its node fail, or lose the run "
                f"folder?); all ranks end (rank {self.rank}: {describe_activity(self._facts())})\n"
            )
            self._end(EXIT_FAILED)

    def _follow(self, failed: dict[str, Any]) -> None:
        """End this rank because another rank failed first."""
        if failed["what"] == "was stuck":
            self._write_report(self._facts())
            self._wait_for_reports()
            # The rank that prints the summary must end first: the launcher kills the others as soon as one ends.
            time.sleep(2 * POLL_SECONDS)
            self._end(EXIT_STUCK)
        if not self._stop.wait(PATIENCE_SECONDS):
            write_error(f"rank {self.rank} ends: {describe_first_failure(self.run)}\n")
            self._end(first_exit_code(self.run))

    def _facts(self) -> dict[str, Any]:
        return {"rank": self.rank, **self.activity.facts(), "at": _code_line(sys._current_frames()[self._main])}

    def _write_report(self, facts: dict[str, Any]) -> None:
        folder = self.run / STUCK
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / f"rank-{self.rank}.txt", "w", encoding="utf-8") as file:
                faulthandler.dump_traceback(file, all_threads=True)
            with atomic_write(folder / f"rank-{self.rank}.json") as file:
                json.dump(facts, file, indent=1)
        except OSError as error:
            activity = describe_activity(facts)
            write_error(f"rank {self.rank}: {folder} cannot be written ({error.strerror}); {activity}\n")

    def _wait_for_reports(self) -> None:
        until = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < until and len(list((self.run / STUCK).glob("rank-*.json"))) < self.ranks:
            time.sleep(0.2)

    def _end(self, code: int) -> None:
        sys.stderr.flush()
        os._exit(code)


def summary(run: Path) -> list[str]:
    """Return one line for each rank that has reported: its activity, and its position in the code."""
    lines = []
    for path in sorted((run / STUCK).glob("rank-*.json"), key=lambda p: int(p.stem.removeprefix("rank-"))):
        facts = json.loads(path.read_text(encoding="utf-8"))
        lines.append(f"rank {facts['rank']}: {describe_activity(facts)}, at {facts['at']}")
    return lines


def _code_line(frame: Any) -> str:
    """Return the innermost line of this package in a stack, then the innermost line of the stack if it is another."""
    stack = traceback.extract_stack(frame)
    ours = [entry for entry in stack if entry.filename.startswith(PACKAGE)]
    lines = dict.fromkeys(f"{e.filename}:{e.lineno} {e.name}" for e in (*ours[-1:], stack[-1]))
    return " > ".join(line.removeprefix(PACKAGE + os.sep) for line in lines)
