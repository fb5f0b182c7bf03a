"""`ma2mba generate`: answers to many questions about many videos, without gold answers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ma2mba.cli.eval import Fresh, PartOption
from ma2mba.cli.output import (
    Device,
    Dtype,
    Frames,
    Json,
    ModelFolder,
    Verbose,
    device_name,
    dtype_name,
    print_json,
    print_line,
    progress,
    require_writable,
)
from ma2mba.cli.stopping import keeping_answers
from ma2mba.cli.writing import MaxTokens, MinP, RepetitionStop, Seed, Stop, Temperature, TopK, TopP
from ma2mba.errors import UserError

if TYPE_CHECKING:
    from ma2mba.evaluation.bulk import Written

QuestionsFile = Annotated[
    Path,
    typer.Argument(metavar="QUESTIONS.jsonl", help="One object a line: id, video, and question or messages."),
]
AnswersPath = Annotated[
    Path, typer.Option("--out", help="File for the answers (.jsonl). The same command again resumes there.")
]
Media = Annotated[
    Path | None, typer.Option("--media", help="Folder of the videos (default: the folder of the questions).")
]

SHOWN = 20
"""Videos without an answer that the text output lists; the answers file has all."""


def generate_command(
    questions: QuestionsFile,
    model: ModelFolder,
    out_file: AnswersPath,
    media: Media = None,
    frames: Frames = "1fps",
    max_tokens: MaxTokens = 256,
    temperature: Temperature = None,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    seed: Seed = None,
    stop: Stop = None,
    repetition_stop: RepetitionStop = False,
    part: PartOption = None,
    fresh: Fresh = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Answer many questions about many videos, each video watched once.

    Every answer is appended to --out as it comes, video by video; at the end, the lines are in the order of the
    questions. A command that was stopped or killed resumes where it was. A video that cannot be used costs its own
    questions: their lines have an error instead of an answer. Exit code 0 if every question was answered, 1 if some
    were not.
    """
    from ma2mba.evaluation.sharing import Part, choose_gpu
    from ma2mba.inference.sampling import Sampling

    if out_file.suffix != ".jsonl":
        raise UserError(f"--out {out_file}: give a name that ends in .jsonl")
    require_writable(out_file)
    sampling = Sampling(temperature, top_p, top_k, min_p, seed, max_tokens, stop or (), repetition_stop)
    share = Part.choose(part)
    choose_gpu()
    from ma2mba.evaluation.bulk import generate

    with progress("questions") as tell, keeping_answers(out_file) as count:
        written = generate(
            model,
            questions,
            out_file,
            sampling,
            frames,
            media=media,
            device=device_name(device),
            dtype=dtype_name(dtype),
            part=share,
            fresh=fresh,
            progress=count(tell),
        )
    _say(written, out_file, str(share) if share.of > 1 else None, as_json)
    if written.errors:
        raise SystemExit(1)


def _say(written: "Written", out_file: Path, part: str | None, as_json: bool) -> None:
    lost = sum(written.errors.values())
    if as_json:
        facts = {"out": str(out_file), "part": part, "answers": written.answers, "errors": lost}
        return print_json(facts | {"complete": not written.missing, "missing": written.missing})
    for reason, questions in list(written.errors.items())[:SHOWN]:
        print_line(f"not answered: {questions} about {reason}")
    if len(written.errors) > SHOWN:
        print_line(f"not answered: {len(written.errors) - SHOWN:,} more videos; their lines have an error")
    of = f" of part {part}" if part else ""
    print_line(f"{out_file}: {written.answers:,} answers{of}{f', {lost:,} without one' if lost else ''}")
    if written.missing:
        print_line(f"{'; '.join(written.missing)}. The part that ends last writes {out_file}")
