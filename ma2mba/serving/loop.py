"""The loop that owns the model. Each turn writes one token of every answer and reads a slice of one text or medium.

While answers are written, media get half of the time, in slices that are short enough that no answer stalls.
"""

import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ma2mba.data.cuts import cuts
from ma2mba.errors import UserError
from ma2mba.inference.session import Session
from ma2mba.model.layer import State
from ma2mba.serving.asked import Asked, OneAnswer
from ma2mba.serving.errors import Refused
from ma2mba.serving.places import Places
from ma2mba.serving.queues import Queues
from ma2mba.serving.readers import Readers, is_fatal
from ma2mba.serving.reading import paced
from ma2mba.serving.states import States

log = logging.getLogger(__name__)
SLICE = 0.1
"""Seconds of a slice of reading."""
READING_SHARE = 0.5
"""The share of the time that the reading of media gets while answers are written."""
WITH_THE_BATCH = {"cuda": 48, "cpu": 4}
"""The longest prompt that is read token by token in the batch: it costs the other answers nothing."""
FAILURES = 3
"""Steps that fail in a row after which the engine stops."""
FATAL = "the model or its device has failed: {}. Restart the server"
FAILED = "the answer was not written to its end, because of an error of the server. Try again, and tell the operator"
NO_MEMORY = "the server has too little memory for an answer now. Try again later"


@dataclass
class _Prefill:
    """A question whose prompt is too long for the batch, and the session that reads it up to its last token."""

    asked: Asked
    session: Session
    work: Iterator[None]


class Loop:
    """The engine's thread. `turned`: the time of the last turn. `broken`: why there are no more turns, or ""."""

    def __init__(self, like: Session, states: States, queues: Queues, woken: threading.Event):
        self._like, self._queues, self._woken = like, queues, woken
        self._readers = Readers(like, states, queues, woken.set)
        self._places = Places(like.model, like.tokenizer, queues.limits.places)
        self._prefills: list[_Prefill] = []
        self._stopping = False
        self.turned, self.broken = time.monotonic(), ""
        self._rest_until = 0.0
        self._failures = self._tokens = self._ended = 0

    def run(self) -> None:
        """Turn until `stop`. What ends the loop is told to everybody who waits."""
        try:
            while not self._stopping:
                self._woken.clear()
                busy = self._turn()
                self.turned = time.monotonic()
                if not busy:
                    self._woken.wait(1.0)
        except BaseException as error:
            log.exception("the engine has stopped")
            self.broken = FATAL.format(str(error).splitlines()[0] if str(error) else type(error).__name__)
        finally:
            self._readers.close()
            for asked in self._queues.asked():
                asked.fail(Refused(self.broken or "the server is being stopped. Ask again later", 503))
            for reading in self._queues.readings():
                if not reading.done:
                    reading.fail(UserError(self.broken or "the server is being stopped. Ask again later"))

    def forget(self, content: str) -> None:
        """Delete the states of a medium, as soon as nobody waits for one of its readings."""
        self._readers.forgetting.add(content)
        self._woken.set()

    def stop(self) -> None:
        self._stopping = True
        self._woken.set()

    def status(self) -> dict[str, float]:
        return {
            "places_taken": float(len(self._places.writers)),
            "answers_total": float(self._ended),
            "answer_tokens_total": float(self._tokens),
            "frames_read_total": float(self._readers.frames),
        }

    def _turn(self) -> bool:
        """Do everything once. Return False if there is nothing to do until somebody wakes the loop."""
        self._sweep()
        self._readers.look_after()
        self._admit()
        busy = self._write()
        return self._read() or busy

    def _sweep(self) -> None:
        """Free what questions hold that are over."""
        for asked in self._queues.asked():
            if asked.over:
                for answer in asked.answers:
                    self._places.leave(answer)
                self._prefills = [prefill for prefill in self._prefills if prefill.asked is not asked]
                self._queues.remove(asked)

    def _admit(self) -> None:
        """Give free places to the questions whose media are read, to the client with the fewest places first."""
        while waiting := [asked for asked in self._queues.asked() if not asked.admitted and self._may_begin(asked)]:
            taken = Counter[str]()
            for asked in self._queues.asked():
                taken[asked.client] += len(asked.answers) if asked.admitted else 0
            asked = min(waiting, key=lambda one: taken[one.client])
            reserved = sum(len(prefill.asked.answers) for prefill in self._prefills)
            if len(asked.answers) > self._places.free - reserved:
                return
            try:
                self._begin(asked)
            except Exception as error:
                self._fail(asked, error)

    def _may_begin(self, asked: Asked) -> bool:
        reading = asked.reading
        if asked.over or reading is None or reading.state == "ready":
            return not asked.over
        if reading.state == "failed":
            name = reading.prefix.medium.name
            asked.fail(Refused(f"{name}: {reading.progress.error}", 400, "unreadable_media"))
            return False
        return asked.question.so_far and reading.frames_read > 0

    def _begin(self, asked: Asked) -> None:
        """Let a question take its places, or first read its prompt by itself if it is long."""
        session, tail = self._like.fork(), asked.prompt.tail
        if reading := asked.reading:
            if reading.state == "ready":
                found = self._readers.find(reading)
                if found is None:
                    return  # its state is not in memory any more: it begins when the state is there again
                session = found
            else:
                assert reading.session
                session = reading.session.fork()
        asked.admitted = True
        asked.count(self._like.model.config.tokens_per_frame)
        most = WITH_THE_BATCH.get(session.device.type, WITH_THE_BATCH["cpu"])
        if len(tail) > most:
            self._prefills.append(_Prefill(asked, session, text_by_layers(session, tail[:-1])))
        else:
            self._join(asked, session.states, tail)

    def _join(self, asked: Asked, states: Sequence[State] | None, tail: Sequence[int]) -> None:
        for answer in asked.answers:
            self._places.join(answer, self._places.blank if states is None else states, tail)

    def _write(self) -> bool:
        """Write one token of all answers. Return whether there are any."""
        if not self._places.writers:
            return False
        try:
            tokens = self._places.step()
            self._failures = 0
        except Exception as error:
            self._batch_failed(error)
            return True
        for writer, token in tokens:
            assert isinstance(writer, OneAnswer)
            try:
                writer.add(token)
            except Exception as error:
                self._fail(writer.asked, error)
            self._tokens += 1
            if writer.ended:
                self._places.leave(writer)
                self._ended += 1
                if writer.asked.ended:
                    self._queues.remove(writer.asked)
        return True

    def _read(self) -> bool:
        """Read a slice of a medium or of a question's text. Return whether there was something to read."""
        began, busy = time.monotonic(), bool(self._prefills or self._places.writers)
        if (not busy or began >= self._rest_until) and self._readers.advance(SLICE):
            now = time.monotonic()
            self._rest_until = now + (now - began) * (1 / READING_SHARE - 1)
            return True
        if self._prefills:
            self._prefill(self._prefills[0])
            return True
        return False

    def _prefill(self, prefill: _Prefill) -> None:
        until = time.monotonic() + SLICE
        try:
            for _ in prefill.work:
                if time.monotonic() > until:
                    return
            self._prefills.remove(prefill)
            self._join(prefill.asked, prefill.session.require_states(), prefill.asked.prompt.tail[-1:])
        except Exception as error:
            self._prefills = [other for other in self._prefills if other is not prefill]
            self._fail(prefill.asked, error)

    def _fail(self, asked: Asked, error: Exception) -> None:
        """Tell one question that it fails, and free its places. Raise what the loop cannot survive."""
        for answer in asked.answers:
            self._places.leave(answer)
        if isinstance(error, UserError):
            asked.fail(error)
        elif isinstance(error, MemoryError | torch.OutOfMemoryError):
            asked.fail(Refused(NO_MEMORY, 503, "no_memory", retry_after=30))
        else:
            log.error("an answer failed", exc_info=error)
            asked.fail(Refused(FAILED, 500, "internal_error"))
            if is_fatal(error):
                raise error
        self._queues.remove(asked)

    def _batch_failed(self, error: Exception) -> None:
        """All answers in the batch are lost. Go on with the next ones, unless it happens again and again."""
        self._failures += 1
        for writer in self._places.writers:
            assert isinstance(writer, OneAnswer)
            if not writer.asked.over:
                self._fail(writer.asked, error)
        self._places.clear()
        if self._failures >= FAILURES:
            raise error


def text_by_layers(session: Session, ids: Sequence[int]) -> Iterator[None]:
    """Let a session read text. Pause after each layer."""
    ids_S = torch.tensor(ids)
    visual_S = torch.full_like(ids_S, -1)
    ends = cuts(visual_S[None], session.chunk_tokens, session.model.config.tokens_per_frame)
    for start, stop in itertools.pairwise(ends):
        work = session.read_by_layers(ids_S[start:stop], visual_S[start:stop], session.no_frames())
        yield from paced(work, session.device)
