"""A thread that ends this process when a step takes far too long, or when another rank has failed or vanished.

All ranks then write what they were doing to RUN/stuck/rank-N.json and every thread's stack to rank-N.txt beside it; the
first to notice says it on stderr. A process that does not let even this thread run is ended by faulthandler.
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
from ma2mba.training.faults.activity import Activity, in_words
from ma2mba.training.faults.failures import EXIT_FAILED, EXIT_STUCK, STUCK, after_whom, claim, exit_code, first
from ma2mba.training.faults.heartbeat import LOST_SECONDS, Heartbeat
from ma2mba.training.recipe.schema import Watchdog as Limits

POLL_SECONDS = 1.0
PATIENCE_SECONDS = 15.0
"""How long the ranks wait for each other's reports, and a rank for its own main thread after another has failed."""
USUAL_STEPS = 3
"""Until so many steps have been timed, as much is granted as for a start: kernels are chosen, connections made."""
START_SECONDS = 600.0
"""A start has so long, or twice the limit of a step where that is more."""
PACKAGE = str(Path(__file__).resolve().parents[2])


class Watchdog:
    """Watches `activity` and the next rank while the block runs; `limits` None only follows a rank that has failed."""

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
        """Seconds after which the step in work, or the start, or the save, is given up."""
        if self.limits is None:
            return float("inf")
        if self.activity.paces < USUAL_STEPS:
            return max(START_SECONDS, 2 * self.limits.seconds)
        return max(self.limits.seconds, self.limits.factor * self.activity.usual_seconds)

    def _watch(self) -> None:
        heart = Heartbeat(self.run, self.rank, self.ranks)
        while not self._stop.wait(POLL_SECONDS):
            if self.limits:
                faulthandler.dump_traceback_later(max(START_SECONDS, 2 * self.limits.seconds), exit=True)
                heart.beat()
            if failed := first(self.run):
                self._follow(failed)
            elif self.activity.seconds > self.limit:
                self._give_up()
            elif self.limits and heart.lost():
                self._tell_loss(heart.neighbour)
        heart.end()

    def _give_up(self) -> None:
        facts = self._facts()
        if not claim(self.run, {"rank": self.rank, "what": "was stuck", "exit_code": EXIT_STUCK, **facts}):
            return  # another was faster: the next look sees it
        self._write(facts)
        limit = f"the limit is {self.limit:.0f} s"
        sys.stderr.write(f"rank {self.rank}: stuck for {self.activity.seconds:.0f} s ({limit}): {in_words(facts)}\n")
        faulthandler.dump_traceback(all_threads=True)
        self._await_reports()
        others = "".join(f"  {line}\n" for line in summary(self.run))
        sys.stderr.write(f"what every rank was doing (stacks: {self.run / STUCK}):\n{others}")
        self._end(EXIT_STUCK)

    def _tell_loss(self, lost: int) -> None:
        facts = {"rank": lost, "what": "was lost", "exit_code": EXIT_FAILED, "noticed_by": self.rank}
        if claim(self.run, facts):
            sys.stderr.write(
                f"rank {lost} has given no sign of life for {LOST_SECONDS:.0f} s (its node, or its way to the run "
                f"folder, is gone?): all ranks end; rank {self.rank} was in {in_words(self._facts())}\n"
            )
            self._end(EXIT_FAILED)

    def _follow(self, failed: dict[str, Any]) -> None:
        if failed["what"] == "was stuck":
            self._write(self._facts())
            self._await_reports()
            time.sleep(2 * POLL_SECONDS)  # the rank that tells all this is to end first: the launcher ends the others
            self._end(EXIT_STUCK)
        if not self._stop.wait(PATIENCE_SECONDS):
            sys.stderr.write(f"rank {self.rank} ends: {after_whom(self.run)}\n")
            self._end(exit_code(self.run))

    def _facts(self) -> dict[str, Any]:
        return {"rank": self.rank, **self.activity.facts(), "at": _place(sys._current_frames()[self._main])}

    def _write(self, facts: dict[str, Any]) -> None:
        folder = self.run / STUCK
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / f"rank-{self.rank}.txt", "w", encoding="utf-8") as file:
                faulthandler.dump_traceback(file, all_threads=True)
            with atomic_write(folder / f"rank-{self.rank}.json") as file:
                json.dump(facts, file, indent=1)
        except OSError as error:
            sys.stderr.write(f"rank {self.rank}: {folder} cannot be written ({error.strerror}); {in_words(facts)}\n")

    def _await_reports(self) -> None:
        until = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < until and len(list((self.run / STUCK).glob("rank-*.json"))) < self.ranks:
            time.sleep(0.2)

    def _end(self, code: int) -> None:
        sys.stderr.flush()
        os._exit(code)


def summary(run: Path) -> list[str]:
    """One line for each rank that has reported: what it was doing, and where in the code."""
    lines = []
    for path in sorted((run / STUCK).glob("rank-*.json"), key=lambda p: int(p.stem.removeprefix("rank-"))):
        facts = json.loads(path.read_text(encoding="utf-8"))
        lines.append(f"rank {facts['rank']}: {in_words(facts)}, at {facts['at']}")
    return lines


def _place(frame: Any) -> str:
    """The innermost line of this package in a stack, and the innermost of all where that is another."""
    stack = traceback.extract_stack(frame)
    ours = [entry for entry in stack if entry.filename.startswith(PACKAGE)]
    places = dict.fromkeys(f"{e.filename}:{e.lineno} {e.name}" for e in (*ours[-1:], stack[-1]))
    return " > ".join(place.removeprefix(PACKAGE + os.sep) for place in places)
