"""Ask questions about many media: each medium is watched once, and each answer is written as it comes.

An evaluation and `ma2mba generate` share this loop. How questions are batched depends on the questions alone, never on
what was answered before: a run that was killed and started again gives the answers of an undisturbed run.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import torch

from ma2mba.errors import UserError
from ma2mba.evaluation.answers_file import AnswersFile, Record
from ma2mba.evaluation.sharing import Part, in_order
from ma2mba.inference.chat import VideoChat
from ma2mba.inference.state_file import Watched
from ma2mba.video.errors import MediaError
from ma2mba.video.frames import FrameReader, Window

log = logging.getLogger(__name__)
TOGETHER = 32
"""Questions about one medium that are answered together: each takes the memory of one recurrent state, twice."""
Progress = Callable[[int, int], None]


class Asked(Protocol):
    """A question about some seconds of a medium."""

    @property
    def medium(self) -> Path: ...
    @property
    def start(self) -> float | None: ...
    @property
    def end(self) -> float | None: ...
    @property
    def picture_rate(self) -> float | None: ...


Q = TypeVar("Q", bound=Asked)
Watch = Callable[[VideoChat, Sequence[Q], str, FrameReader], Sequence[VideoChat]]
"""Lets a chat that has watched nothing watch what some questions are about; returns a chat for each question."""


class CannotWatch(UserError):
    """`watch` cannot go on, and no medium is at fault: the run stops."""


def watch_medium(chat: VideoChat, questions: Sequence[Asked], frames: str, reader: FrameReader) -> list[VideoChat]:
    """Watch the seconds of one medium that all questions are about: they share the chat."""
    first, chat = questions[0], chat.fork()
    chat.watch(first.medium, frames, reader=reader, hashed=False, window=_window(first))
    return [chat] * len(questions)


@dataclass
class Asking(Generic[Q]):
    """A run of questions over media.

    describe  returns what a record says of a question, answered or not
    respond   yields (place, fields) for each of some questions, as they are answered. Each question has its own chat
    watch     returns these chats
    apart     the questions of a medium see different pictures of it: `watch` is called for every TOGETHER of them
    """

    questions: Sequence[Q]
    frames: str
    describe: Callable[[Q], Record]
    respond: Callable[[Sequence[VideoChat], Sequence[Q]], Iterable[tuple[int, Record]]]
    unanswered: Record = field(default_factory=dict)
    """The fields of a record without an answer."""
    watch: Watch[Q] = watch_medium
    apart: bool = False

    def media(self) -> list[list[int]]:
        """Return the numbers of each medium's questions, the media in the order of their first questions."""
        return list(in_order(question.medium for question in self.questions).values())

    def numbers(self, part: Part) -> list[int]:
        """Return the numbers of a part's questions, in the order in which they are asked."""
        return [number for medium in part.share(self.media()) for number in medium]

    def run(self, chat: VideoChat, part: Part, file: AnswersFile, reader: FrameReader, progress: Progress) -> None:
        """Answer the part's questions that have no answer yet. Questions that could not be answered are asked again.

        `chat` has watched nothing. Whatever happens when a medium is read costs the questions about this medium alone.
        """
        wanted = self.numbers(part)
        answered = {number for number in wanted if "error" not in file.records.get(number, {"error": ""})}
        done = len(answered)
        if done:
            progress(done, len(wanted))
        for numbers in part.share(self.media()):
            for group in self._groups(numbers):
                for record in self._ask(chat, group, answered, reader):
                    if _says_more(record, file.records.get(record["number"])):
                        file.add(record)
                    done += 1
                    progress(done, len(wanted))
            file.sync()

    def _groups(self, numbers: Sequence[int]) -> Iterator[list[int]]:
        """Yield the questions about a medium that are answered after watching it once."""
        for places in in_order(_window(self.questions[number]) for number in numbers).values():
            size = TOGETHER if self.apart else len(places)
            for begin in range(0, len(places), size):
                yield [numbers[place] for place in places[begin : begin + size]]

    def _ask(self, chat: VideoChat, group: Sequence[int], answered: set[int], reader: FrameReader) -> Iterable[Record]:
        """Watch the seconds that a group asks about, and yield the records of its questions without an answer."""
        if answered.issuperset(group):
            return
        questions = [self.questions[number] for number in group]
        medium, began = questions[0].medium, time.monotonic()
        try:
            chats = self.watch(chat, questions, self.frames, reader)
        except (
            torch.OutOfMemoryError,
            torch.AcceleratorError,
            CannotWatch,
        ):  # no medium's fault: the next one would fail too
            raise
        except Exception as error:
            if not isinstance(error, MediaError):
                log.debug("%s cannot be read", medium, exc_info=True)
            reason = _reason(medium, error)
            for number in group:
                yield self._record(number) | self.unanswered | {"frames": 0, "error": reason}
            return
        watched = _facts(chats[0].watched[-1], questions[0])
        watched |= {"watch_seconds": round(time.monotonic() - began, 3)}
        for begin in range(0, len(group), TOGETHER):
            some = slice(begin, begin + TOGETHER)
            batch = group[some]
            if answered.issuperset(batch):
                continue
            for place, fields in self.respond(chats[some], questions[some]):
                if batch[place] not in answered:
                    yield self._record(batch[place]) | watched | fields

    def _record(self, number: int) -> Record:
        return {"number": number} | self.describe(self.questions[number]) | {"sampling": self.frames}


def _window(question: Asked) -> Window:
    return Window(question.start, question.end, question.picture_rate)


def _facts(seen: Watched, question: Asked) -> Record:
    """Return how many frames were seen, and of how many seconds."""
    end = seen.seconds if question.end is None else min(question.end, seen.seconds)
    return {"frames": seen.frames, "video_seconds": round(max(0.0, end - (question.start or 0.0)), 3)}


def _reason(medium: Path, error: Exception) -> str:
    """Return an error in one line that names the medium."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if str(medium) in text else f"{medium}: cannot be read ({type(error).__name__}: {text})"


def _says_more(record: Record, before: Record | None) -> bool:
    """Return False if a medium cannot be read once more, for the same reason."""
    return before is None or "error" not in record or record["error"] != before.get("error")
