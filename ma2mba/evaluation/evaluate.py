"""Evaluate a model: ask the questions of a benchmark or a task file, and write every answer as it comes."""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from ma2mba.annotations.choices import LETTERS
from ma2mba.errors import UserError
from ma2mba.evaluation.answering import Place, Start, answer_part
from ma2mba.evaluation.answers_file import Record
from ma2mba.evaluation.asking import Asking, Progress, Watch, watch_medium
from ma2mba.evaluation.charts import PICTURES
from ma2mba.evaluation.items import Item
from ma2mba.evaluation.judging import LIKELIHOOD, chosen, judged
from ma2mba.evaluation.likelihood import likeliest, score_options
from ma2mba.evaluation.results import ANSWERS, REPORT, RUN, Report, collect, write_report
from ma2mba.evaluation.sharing import Part
from ma2mba.inference.chat import Together, VideoChat, parse_frames
from ma2mba.inference.sampling import Sampling
from ma2mba.video.decode import pick, sample_times

ANSWER_TOKENS = 32
SCORINGS = ("letter", LIKELIHOOD)
HOW = Sampling(max_tokens=ANSWER_TOKENS, repetition_stop=True)
"""How answers are written: greedily, and by the paper's rule for their end."""


@dataclass(frozen=True)
class Questions:
    """The questions of an evaluation: of a task file, of the benchmark that is named, or about needles.

    options      what else decides the answers: it is kept in run.json, and shown in the report
    watch, apart see `Asking`
    """

    items: Sequence[Item]
    source: str
    benchmark: str = ""
    subtitles: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    watch: Watch[Item] = watch_medium
    apart: bool = False


def evaluate(
    model: Path | str,
    questions: Questions,
    folder: Path,
    frames: str | int = "1fps",
    *,
    scoring: str = "letter",
    device: str = "cpu",
    dtype: str = "auto",
    part: Part = Part(),
    fresh: bool = False,
    progress: Progress = lambda done, total: None,
) -> Report | None:
    """Ask the questions of a part that have no answer in `folder` yet. Write each answer there as it comes.

    If all parts are complete then, write and return the report (`results.build`), otherwise return None. A medium that
    cannot be used (missing, damaged, over a limit, or its decoder hangs or crashes) costs its own questions only: they
    are not answered and do not count. Calls `progress(done, total)` after every question.

    Raise UserError for bad input, if `folder` holds the answers of another run (`fresh` removes them), if another
    process works on the same part, and if no question can be answered.
    """
    parse_frames(str(frames))
    if scoring not in SCORINGS:
        raise UserError(f"--scoring {scoring}: unknown. Use {' or '.join(SCORINGS)}")
    if scoring == LIKELIHOOD and not any(item.options for item in questions.items):
        raise UserError(
            f"--scoring {LIKELIHOOD}: {questions.source} has no question with options. Use --scoring letter"
        )
    respond, watch, apart = _responder(scoring), questions.watch, questions.apart
    asking = Asking(questions.items, str(frames), _describe, respond, UNANSWERED, watch, apart)
    options = {
        **questions.options,
        "questions": _hash(questions.items),
        "number_of_questions": len(questions.items),
        "scoring": scoring,
        "subtitles": questions.subtitles,
    }
    about = {"questions": questions.source, "benchmark": questions.benchmark}
    place = Place(folder, ANSWERS, RUN, (REPORT, *PICTURES))
    start = Start(model, device, dtype, options, about, part, fresh)
    answer_part(asking, place, start, progress)
    collected = collect(folder)
    if collected.missing():
        return None
    return write_report(collected, folder)


UNANSWERED: Record = {"prediction": "", "correct": False}


def _describe(item: Item) -> Record:
    facts: Record = {
        "id": item.id,
        "task": item.task,
        "duration_group": item.duration_group,
        "video": str(item.medium),
        "question": item.question,
        "options": list(item.options),
        "answer": item.gold,
        "chance": item.chance,
        "prompt": item.prompt,
    }
    bounds = {"start": item.start, "end": item.end, "picture_rate": item.picture_rate}
    return facts | {key: value for key, value in bounds.items() if value is not None} | dict(item.needle)


def _responder(scoring: str) -> Any:
    return _by_likelihood if scoring == LIKELIHOOD else _in_words


def _in_words(chats: Sequence[VideoChat], items: Sequence[Item]) -> Iterator[tuple[int, Record]]:
    """Yield each answer in words, judged, as soon as it ends."""
    prompts = [_prompt(chat, item) for chat, item in zip(chats, items, strict=True)]
    together = Together(chats, prompts, HOW)
    for place, answer in together.ended():
        prediction = answer.text.strip()
        said = {"prompt": prompts[place], "prediction": prediction, "reason": answer.reason}
        yield place, said | {"seconds": round(answer.seconds, 3)} | judged(items[place], prediction)


def _by_likelihood(chats: Sequence[VideoChat], items: Sequence[Item]) -> Iterator[tuple[int, Record]]:
    """Yield the option of each question that is the likeliest; an open question is answered in words."""
    for place, (chat, item) in enumerate(zip(chats, items, strict=True)):
        if item.options:
            began = time.monotonic()
            prompt = _prompt(chat, item)
            scores = score_options(chat, prompt, item.options)
            option = likeliest(scores)
            said = {
                "prompt": prompt,
                "prediction": f"{LETTERS[option]}. {item.options[option]}",
                "log_likelihoods": [round(score.total, 6) for score in scores],
                "seconds": round(time.monotonic() - began, 3),
            }
            yield place, said | chosen(item, option)
        else:
            yield from ((place, fields) for _, fields in _in_words([chat], [item]))


def _prompt(chat: VideoChat, item: Item) -> str:
    """Return what is asked about the frames that a chat has watched: with the subtitles that are spoken at them."""
    seen = chat.watched[-1]
    seconds = pick(sample_times(seen.seconds, 1.0, item.start, item.end), parse_frames(seen.sampling))
    return item.asked(map(float, seconds)) if item.subtitles else item.prompt


def _hash(items: Sequence[Item]) -> str:
    """Return a hash of all that decides answers and scores. The folder of the media does not count."""
    media = [str(item.medium.absolute()) for item in items]
    root = os.path.commonpath(media)
    digest = xxhash.xxh3_128()
    for item, medium in zip(items, media, strict=True):
        facts = _describe(item) | {"video": os.path.relpath(medium, root), "gold_index": item.gold_index}
        facts["subtitles"] = [(line.start, line.end, line.text) for line in item.subtitles]
        digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()
