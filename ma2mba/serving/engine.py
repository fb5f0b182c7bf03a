"""The engine: answers questions about media for many clients at once, with one model."""

import asyncio
import os
import sys
import threading
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer

from ma2mba.errors import UserError
from ma2mba.inference.session import Session
from ma2mba.inference.state_file import state_bytes
from ma2mba.memory import machine_bytes
from ma2mba.model.pretrained import load_model
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.serving.asked import Asked
from ma2mba.serving.contract import Medium, Question
from ma2mba.serving.errors import Refused
from ma2mba.serving.loop import Loop
from ma2mba.serving.prompt import encode_turns, medium_prefix
from ma2mba.serving.queues import Held, Limits, Queues
from ma2mba.serving.settings import Settings
from ma2mba.serving.state_folder import StateFolder
from ma2mba.serving.states import Budgets, States

SWITCH = 0.0005
"""Seconds for which Python's other threads may keep the engine's thread waiting, each time; 0.005 by default, which is
the time of a step on a GPU."""
SILENT = {"cuda": 60.0, "cpu": 1800.0}
"""Seconds without a turn of the loop after which the engine counts as stopped. A CPU is slow to see many frames."""


class ServingEngine:
    """`Engine` of one model on one device. One thread runs the model; any thread may call these methods."""

    def __init__(
        self,
        model: VideoMa2mba,
        tokenizer: Tokenizer,
        limits: Limits | None = None,
        folder: Path | None = None,
        budgets: Budgets | None = None,
    ):
        """`folder`: where states are kept; None: in memory only. Raise OSError if it cannot be written."""
        like, woken = Session(model, tokenizer), threading.Event()
        self._tokenizer, self._limits, self._accepts = tokenizer, limits or Limits(), True
        kept_in = StateFolder(folder, like.chunk_tokens) if folder else None
        self._states = States(like, kept_in, budgets or default_budgets(like))
        self._queues = Queues(self._limits, self._states.known, woken.set)
        self._loop = Loop(like, self._states, self._queues, woken)
        self._thread = threading.Thread(target=self._loop.run, name="engine", daemon=True)
        self._thread.start()
        self._woken, self._device = woken, like.device.type

    @classmethod
    def open(cls, settings: Settings) -> "ServingEngine":
        """Load the model of the settings. Raise UserError as `load_model` does."""
        device = settings.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        model, tokenizer = load_model(settings.model, device, settings.dtype)
        readers = max(Limits.readers, (os.cpu_count() or 1) // 2)
        limits = Limits(settings.places, settings.waiting, settings.client_places, settings.client_readings, readers)
        sys.setswitchinterval(SWITCH)
        budgets = default_budgets(Session(model, tokenizer), settings.places, int(settings.cache_gb * 1e9))
        try:
            return cls(model, tokenizer, limits, settings.states, budgets)
        except OSError as error:
            raise UserError(f"{settings.states}: cannot be used ({error.strerror}). Name another --cache") from error

    def read(self, medium: Medium, client: str) -> Held:
        """Let the model read a medium. Raise Busy, and Refused if the engine has stopped."""
        self._require_running()
        return Held(self._queues.hold(medium_prefix(self._tokenizer, medium), client), self._queues, medium.name)

    def ask(self, question: Question) -> Asked:
        """Answer a question. Raise Busy, UserError for a bad question, and Refused if the engine has stopped."""
        self._require_running()
        if not 1 <= question.answers <= min(self._limits.places, self._limits.client_places):
            most = min(self._limits.places, self._limits.client_places)
            raise UserError(f"n: {question.answers} is out of range. Use 1 to {most}")
        prompt = encode_turns(self._tokenizer, question.turns)
        asked = Asked(question, prompt, self._tokenizer, self._cancel)
        self._queues.add(asked)
        return asked

    def forget(self, content: str) -> None:
        self._loop.forget(content)

    def problem(self) -> str:
        if self._loop.broken:
            return self._loop.broken
        if not self._thread.is_alive():
            return "the engine has stopped. Restart the server"
        silent = time.monotonic() - self._loop.turned
        if silent > SILENT.get(self._device, SILENT["cpu"]):
            return f"the engine has done nothing for {silent:,.0f} s. Restart the server"
        return ""

    def status(self) -> dict[str, float]:
        asked, readings = self._queues.asked(), self._queues.readings()
        numbers = {
            "places": float(self._limits.places),
            "questions": float(len(asked)),
            "readings_queued": float(sum(reading.state == "queued" for reading in readings)),
            "readings_running": float(sum(reading.state == "reading" for reading in readings)),
        }
        return numbers | self._loop.status() | self._states.status()

    async def stop(self, grace_seconds: float) -> None:
        """Accept nothing new, let answers end within the grace, write the states to disk, and end all threads."""
        self._accepts = False
        until = time.monotonic() + grace_seconds
        while self._queues.asked() and time.monotonic() < until and not self.problem():
            await asyncio.sleep(0.02)
        for asked in self._queues.asked():
            asked.fail(Refused("the server is being stopped. Ask again later", 503, "stopping"))
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        self._loop.stop()
        self._thread.join(30)
        self._states.close()

    def _cancel(self, asked: Asked) -> None:
        asked.over = True
        self._woken.set()

    def _require_running(self) -> None:
        if not self._accepts:
            raise Refused("the server is being stopped. Ask again later", 503, "stopping", retry_after=30)
        if problem := self.problem():
            raise Refused(problem, 503, "engine_stopped")


def default_budgets(like: Session, places: int = 0, disk: int = 50 * 10**9) -> Budgets:
    """Return budgets for this machine: a quarter of host memory, and on a GPU a quarter of what the places leave."""
    host = machine_bytes() // 4
    if like.device.type != "cuda":
        return Budgets(host, 0, disk)
    free = torch.cuda.mem_get_info(like.device)[0] - places * state_bytes(like.model)
    return Budgets(max(free, 0) // 4, host, disk)
