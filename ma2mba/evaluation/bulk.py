"""Answers in bulk: questions about many videos without gold answers, for people who label or describe videos."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import xxhash
from pydantic import BaseModel, ConfigDict, model_validator

from ma2mba.errors import UserError
from ma2mba.evaluation.answering import Place, Start, answer_part
from ma2mba.evaluation.answers_file import Record, places_of_answers, read_answers
from ma2mba.evaluation.asking import Asking, Progress
from ma2mba.evaluation.run_file import RunFile
from ma2mba.evaluation.sharing import Part
from ma2mba.evaluation.tasks import AskedText, Name, Text, leads_out, lines_of, parse_line, require_files
from ma2mba.files import OutsideFolder, atomic_path, inside
from ma2mba.inference.chat import Together, VideoChat, parse_frames
from ma2mba.inference.sampling import Sampling


class _Part(BaseModel):
    """A part of a message, as OpenAI's clients write it. The video itself is the line's `video`."""

    model_config = ConfigDict(extra="ignore")
    type: Literal["text", "video"]
    text: str = ""


class _Message(BaseModel):
    role: Literal["user", "assistant"]
    content: Text | list[_Part]

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content if part.type == "text")


class _Line(BaseModel):
    id: Name
    video: str
    question: AskedText | None = None
    messages: list[_Message] = []
    start: float | None = None
    end: float | None = None

    @model_validator(mode="after")
    def _one_way(self) -> "_Line":
        if (self.question is None) == (not self.messages):
            raise ValueError("give either question or messages")
        roles = [message.role for message in self.messages]
        if self.messages and roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
            raise ValueError("messages alternate user, assistant, ..., and end with user")
        if any(not message.text.strip() for message in self.messages):
            raise ValueError("a message is blank")
        return self


@dataclass(frozen=True, slots=True)
class Ask:
    """A question about a video. `before`: the questions and answers before it."""

    id: str
    medium: Path
    question: str
    before: tuple[tuple[str, str], ...] = ()
    start: float | None = None
    end: float | None = None
    picture_rate: float | None = None


def read_asks(path: Path, media: Path | None = None) -> list[Ask]:
    """Return the questions of a JSONL file: id, video, and question or messages; optionally start and end in seconds.

    `media` is the folder that the videos' names count from (default: the file's folder). Raise UserError for an
    unreadable file, a malformed line, and a video outside `media`; a missing video costs its own questions later.
    """
    require_files(path, media)
    asks = []
    for number, text in lines_of(path):
        where = f"{path}, line {number}"
        line = parse_line(where, text, _Line)
        try:
            video = inside(media or path.parent, line.video, path)
        except OutsideFolder as error:
            raise leads_out(where, line.video, error) from error
        texts = [message.text for message in line.messages] or [line.question or ""]
        before = tuple(zip(texts[:-1:2], texts[1::2], strict=True))
        asks.append(Ask(line.id, video, texts[-1], before, line.start, line.end))
    if not asks:
        raise UserError(f"{path}: holds no question. Write one object a line: id, video, question")
    return asks


@dataclass(frozen=True)
class Written:
    """What a run has written so far. `answers` and `errors` are those of this part, `missing` as in an evaluation."""

    answers: int
    errors: dict[str, int]
    missing: list[str]


def generate(
    model: Path | str,
    questions: Path,
    out: Path,
    sampling: Sampling,
    frames: str | int = "1fps",
    *,
    media: Path | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    part: Part = Part(),
    fresh: bool = False,
    progress: Progress = lambda done, total: None,
) -> Written:
    """Answer the questions of a part, and append each answer to `out`, or to the part's own file, as it comes.

    When all parts are complete, `out` holds one line for each question in the order of `questions`. The options of the
    run are beside it, in `run_path(out)`. Raise UserError as `evaluate` does.
    """
    parse_frames(str(frames))
    asks = read_asks(questions, media)
    if os.path.realpath(out) == os.path.realpath(questions):
        raise UserError(f"--out {out}: is the file of the questions. Name another file")
    if os.path.lexists(out) and not os.path.lexists(run_path(out)):
        raise UserError(f"--out {out}: exists, and `ma2mba generate` did not write it. Name another file")
    asking = Asking(asks, str(frames), _describe, lambda chats, some: _answers(chats, some, sampling), {"answer": None})
    options = {"questions": _hash(asks), "number_of_questions": len(asks), **_sampling(sampling)}
    place = Place(out.parent, out.name, run_path(out).name)
    answer_part(
        asking, place, Start(model, device, dtype, options, {"questions": str(questions)}, part, fresh), progress
    )
    return _finish(out, asking.numbers(part), part)


def run_path(out: Path) -> Path:
    """Return the path of a run's options: answers.run.json beside answers.jsonl."""
    return out.with_name(f"{out.name.removesuffix('.jsonl')}.run.json")


def _sampling(sampling: Sampling) -> dict[str, Any]:
    return {**asdict(sampling), "temperature": sampling.heat, "stop": list(sampling.stop)}


def _describe(ask: Ask) -> Record:
    bounds = {key: value for key, value in (("start", ask.start), ("end", ask.end)) if value is not None}
    return {"id": ask.id, "video": str(ask.medium), "question": ask.question} | bounds


def _answers(given: Sequence[VideoChat], asks: Sequence[Ask], sampling: Sampling) -> Iterator[tuple[int, Record]]:
    """Yield each answer as soon as it ends."""
    chats = [chat.fork() if ask.before else chat for chat, ask in zip(given, asks, strict=True)]
    for chat, ask in zip(chats, asks, strict=True):
        for question, answer_before in ask.before:
            chat.said(question, answer_before)
    together = Together(chats, [ask.question for ask in asks], sampling)
    for place, answer in together.ended():
        said: Record = {"answer": answer.text.strip(), "reason": answer.reason, "tokens": len(answer.tokens)}
        said |= {"seed": answer.seed} if answer.seed is not None else {}
        yield place, said | {"seconds": round(answer.seconds, 3)}


def _hash(asks: Sequence[Ask]) -> str:
    """Return a hash of all that decides answers. The folder of the videos does not count."""
    root = os.path.commonpath([str(ask.medium.absolute()) for ask in asks])
    digest = xxhash.xxh3_128()
    for ask in asks:
        name = os.path.relpath(ask.medium.absolute(), root)
        digest.update(repr((ask.id, name, ask.question, ask.before, ask.start, ask.end)).encode())
    return digest.hexdigest()


def _finish(out: Path, numbers: Sequence[int], part: Part) -> Written:
    """Join the files of all parts if they are complete. Return what this part has."""
    run = RunFile.read(run_path(out))
    files = [out.with_name(other.name(out.name)) for other in part.siblings()]
    records = [read_answers(path, run.id) for path in files]
    lost: dict[str, int] = {}
    for record in (records[part.number][number] for number in numbers):
        if "error" in record:
            lost[record["error"]] = lost.get(record["error"], 0) + 1
    missing = run.missing([len(found) for found in records])
    if not missing:
        _join(files, out, run.id)
    return Written(len(numbers) - sum(lost.values()), lost, missing)


def _join(files: Sequence[Path], out: Path, run: str) -> None:
    """Write the last record of each question to `out`, in the order of the questions."""
    opened: list[BinaryIO] = []
    try:
        lines: dict[int, tuple[BinaryIO, int, int]] = {}
        for path in files:
            opened.append(open(path, "rb"))  # noqa: SIM115 - closed below
            lines |= {n: (opened[-1], begin, size) for n, begin, size in places_of_answers(opened[-1], path, run)}
        with atomic_path(out) as temporary, open(temporary, "wb") as joined:
            for _, (file, begin, size) in sorted(lines.items(), key=lambda pair: pair[0]):
                file.seek(begin)
                joined.write(file.read(size))
    finally:
        for file in opened:
            file.close()
