"""From a model folder to the answers of one part of a run: what an evaluation and `ma2mba generate` share."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ma2mba import __version__
from ma2mba.evaluation.answers_file import AnswersFile, remove_answers
from ma2mba.evaluation.asking import Asking, Progress
from ma2mba.evaluation.run_file import RunFile
from ma2mba.evaluation.sharing import Part
from ma2mba.inference.chat import VideoChat
from ma2mba.inference.fingerprint import dtype_name, fingerprint
from ma2mba.model.pretrained import load_model
from ma2mba.video.frames import FrameReader


@dataclass(frozen=True)
class Place:
    """Where a run writes: the names of its answers, of its options and of what is made of the answers at the end."""

    folder: Path
    answers: str
    run: str
    products: tuple[str, ...] = ()


@dataclass(frozen=True)
class Start:
    """How a part of a run begins. `options` and `about`: see `RunFile`; the model's and the machine's are added."""

    model: Path | str
    device: str
    dtype: str
    options: Mapping[str, Any]
    about: Mapping[str, Any]
    part: Part
    fresh: bool = False


def answer_part(asking: Asking[Any], place: Place, start: Start, progress: Progress) -> None:
    """Answer the questions of a part that have no answer in `place` yet.

    Raise UserError for a bad model, if the answers there are of another run (`fresh` removes them), and if another
    process works on the same part. Options are compared before the model is loaded.
    """
    part = start.part
    options = {**start.options, "frames": asking.frames, "parts": part.of, "device": start.device}
    options["ma2mba"] = __version__
    about = {**start.about, "model": str(start.model)}
    path = place.folder / place.run
    if not start.fresh and os.path.lexists(path):
        RunFile.read(path).require(options, about, path)
    counts = [len(asking.numbers(sibling)) for sibling in part.siblings()]
    with FrameReader() as reader:  # its process starts while the model is loaded
        model, tokenizer = load_model(start.model, start.device, start.dtype)
        options |= {"model": fingerprint(model), "dtype": dtype_name(model)}
        with _opened(place, RunFile(options, about, counts), part, fresh=start.fresh) as file:
            asking.run(VideoChat(model, tokenizer), part, file, reader, progress)


def _opened(place: Place, run: RunFile, part: Part, *, fresh: bool) -> AnswersFile:
    """Return the part's file, locked, beside the options of this run. With `fresh`, nothing of another run stays."""
    path = place.folder / place.run
    if not fresh:
        run.claim(path)
    place.folder.mkdir(parents=True, exist_ok=True)
    file = AnswersFile(place.folder / part.name(place.answers), run.id, fresh=fresh)
    if fresh:
        try:
            remove_answers(place.folder, place.answers, keep={other.name(place.answers) for other in part.siblings()})
            for name in place.products:
                (place.folder / name).unlink(missing_ok=True)
            run.claim(path, fresh=True)
        except BaseException:
            file.close()
            raise
    return file
