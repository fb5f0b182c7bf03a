"""Report a run: metrics.jsonl, TensorBoard, and a progress bar on a terminal, otherwise a line every few seconds."""

import json
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ma2mba.errors import UserError
from ma2mba.files import atomic_write, inside
from ma2mba.terminal import Terminal
from ma2mba.text import read_jsonl
from ma2mba.training.flops import ModelFlops
from ma2mba.training.start_clock import StartClock, describe

LINE_SECONDS = 10.0
"""Seconds between two lines where stderr is not a terminal."""
NOT_ON_BOARD = ("step", "epoch", "rank_tokens", "checkpoint_seconds", "start_seconds")
"""Keys that only metrics.jsonl has. (TensorBoard gets the duration of each checkpoint at the step that saved it.)"""


@dataclass(frozen=True)
class StepResult:
    """The result of one step over all ranks. M micro-batches of this rank.

    rates        learning rate of each trained model component
    tokens       text and visual tokens, without padding
    targets      tokens that the loss is taken over
    rank_tokens  padded tokens that each rank computed on
    losses_M     fp32, the contribution of each micro-batch of this rank to the loss
    """

    loss: float
    gradient_norm: float
    rates: dict[str, float]
    tokens: int
    frames: int
    targets: int
    epoch: int
    rank_tokens: list[int]
    losses_M: Tensor


class Metrics:
    """Reports the steps of a run on rank 0: the first and the last step, and every `log_every`-th step.

    On resume it drops the lines of metrics.jsonl after `first_step`. Speeds are means since the previous line. The
    remaining time is estimated from tokens.

    first_step       steps done before this launch
    first_tokens     estimated tokens of the steps before `first_step`
    tokens           estimated tokens of the whole run
    peak_flops       peak FLOP/s of all devices together; None if unknown
    predicted_bytes  the peak memory that the planner predicted
    captured         True if chunks are captured as CUDA graphs
    clock            has timed the start; the first line has its seconds
    echo             print every line of metrics.jsonl on stdout as well
    """

    def __init__(
        self,
        run: Path,
        title: str,
        first_step: int,
        steps: int,
        log_every: int,
        device: torch.device,
        *,
        first_tokens: int,
        tokens: int,
        flops: ModelFlops,
        peak_flops: float | None,
        predicted_bytes: int,
        captured: bool = False,
        clock: StartClock | None = None,
        echo: bool = False,
    ):
        self._clock, self._echo = clock, echo
        self._model_flops, self._peak_flops = flops, peak_flops
        self.path, self.device = run / "metrics.jsonl", device
        self.first_step, self.steps, self.log_every = first_step, steps, log_every
        self._predicted_bytes, self._captured = predicted_bytes, captured
        keep_until(self.path, first_step)
        self._file = self.path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=first_step + 1 if first_step else None)
        self._console = Terminal(stderr=True)
        self._bar = _bar(self._console)
        self._task = self._bar.add_task(
            title, total=tokens, completed=first_tokens, steps=first_step, of=steps, loss="-", speed="-"
        )
        self._stood_still: dict[int, float] = {}
        self._title, self._last_line, self._waited = title, -LINE_SECONDS, 0.0
        self.last: dict[str, Any] = {}
        """The last line of metrics.jsonl that this launch wrote."""
        self._reset()

    def __enter__(self) -> "Metrics":
        self._report_thread = threading.excepthook
        threading.excepthook = self._report_unless_board
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._bar.stop()
        # On a full disk, closing fails as the write before did: report the first error only.
        with suppress(OSError) if kind else self._writing(), self._file:
            self._board.close()
        threading.excepthook = self._report_thread

    def _report_unless_board(self, facts: threading.ExceptHookArgs) -> None:
        """Report an error of a thread. TensorBoard's thread also raises its error in the next call of `_board`."""
        if type(facts.thread).__module__ != EventFileWriter.__module__:
            self._report_thread(facts)

    def add(self, step: int, result: StepResult, waited: float) -> None:
        """Count step number `step` (from 1) and report it if it is due.

        `waited` is how many seconds training has waited for the loader so far.
        """
        self._tokens += result.tokens
        self._frames += result.frames
        self._flops += self._model_flops.of_step(result.tokens, result.frames, result.targets)
        if step % self.log_every and step not in (self.first_step + 1, self.steps):
            self._bar.update(self._task, advance=result.tokens, steps=step)
            return
        seconds = time.perf_counter() - self._since - self._saving
        line: dict[str, Any] = {
            "step": step,
            "epoch": result.epoch,
            "loss": result.loss,
            "gradient_norm": result.gradient_norm,
            "lr": result.rates,
            "tokens_per_second": self._tokens / seconds,
            "frames_per_second": self._frames / seconds,
            "model_flop_utilisation": self._peak_flops and self._flops / seconds / self._peak_flops,
            "peak_memory_bytes": peak_memory(self.device, self._captured),
            "peak_memory_predicted_bytes": self._predicted_bytes,
            "data_wait_share": (waited - self._waited) / seconds,
            "rank_tokens": result.rank_tokens,
            "rank_imbalance": max(result.rank_tokens) * len(result.rank_tokens) / sum(result.rank_tokens),
            "checkpoint_seconds": self._saving,
        }
        if self._clock:
            line["start_seconds"], self._clock = self._clock.finish(), None
            self.message(describe(line["start_seconds"]))
        self._write(step, line)
        self._show(step, line, result.tokens)
        self._waited = waited
        self._reset()

    def stood_still(self, step: int, seconds: float) -> None:
        """Count the time for which training stood still for a save. The next line holds it; speeds exclude it."""
        self._saving += seconds
        self._stood_still[step] = seconds
        with self._writing():
            self._board.add_scalar("checkpoint_seconds", seconds, step)

    def saved(self, step: int, folder: Path, seconds: float) -> None:
        """Report a complete checkpoint, and how long it took to write."""
        still = self._stood_still.pop(step)
        with self._writing():
            self._board.add_scalar("checkpoint_write_seconds", seconds, step)
        self.message(f"saved {folder} in {seconds:.1f} s (training stood still for {still:.1f} s)")

    def message(self, text: str) -> None:
        """Print a line without breaking the progress bar."""
        self._console.print(text, soft_wrap=True)

    def _reset(self) -> None:
        self._since, self._tokens, self._frames = time.perf_counter(), 0, 0
        self._flops, self._saving = 0.0, 0.0

    def _write(self, step: int, line: dict[str, Any]) -> None:
        self.last = line
        with self._writing():
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            if self._echo:
                print(json.dumps(line), flush=True)
            for key, value in line.items():
                if key == "lr":
                    for component, rate in value.items():
                        self._board.add_scalar(f"lr/{component}", rate, step)
                elif key not in NOT_ON_BOARD and value is not None:
                    self._board.add_scalar(key, value, step)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn an OSError raised while the block writes, such as a full disk, into a UserError."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.path.parent}: cannot be written ({error.strerror}). Free disk space, then run the same command "
                "again to resume from the latest checkpoint, which is complete"
            ) from error

    def _show(self, step: int, line: dict[str, Any], tokens: int) -> None:
        loss, speed = f"{line['loss']:.4f}", f"{line['tokens_per_second']:,.0f} tokens/s"
        self._bar.update(self._task, advance=tokens, steps=step, loss=loss, speed=speed)
        now = time.monotonic()
        if not self._console.is_terminal and (now - self._last_line >= LINE_SECONDS or step == self.steps):
            left = self._bar.tasks[self._task].time_remaining
            remaining = "" if left is None else f", {left:.0f} s left"
            self.message(f"{self._title}: step {step}/{self.steps}, loss {loss}, {speed}{remaining}")
            self._last_line = now


def peak_memory(device: torch.device, captured: bool) -> int:
    """Return this process's peak memory in bytes: allocated on a CUDA device, resident on a CPU.

    Torch does not count the memory of captured CUDA graphs as allocated. With `captured`, return the peak of reserved
    memory, which includes it.
    """
    if device.type == "cuda":
        return (torch.cuda.max_memory_reserved if captured else torch.cuda.max_memory_allocated)(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def keep_until(path: Path, step: int) -> None:
    """Drop the lines of a metrics file after `step`, and a last line that a crash cut off.

    Raise UserError if the file is not a metrics file.
    """
    inside(path.parent, path.name, path.parent)
    if not path.exists():
        return
    with atomic_write(path) as file:
        for record in read_jsonl(path):
            if not isinstance(record.get("step"), int):
                raise UserError(f"{path}: a line has no step. Move the file away, or set run to another folder")
            if record["step"] <= step:
                file.write(json.dumps(record) + "\n")


def _bar(console: Terminal) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[steps]}/{task.fields[of]}", markup=False),
        TextColumn("loss {task.fields[loss]}  {task.fields[speed]}", markup=False),
        TextColumn("left", markup=False),
        TimeRemainingColumn(),
        console=console,
    )
