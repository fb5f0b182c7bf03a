"""The options of a run, kept beside its answers: answers of two models, two question files or two options never mix."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from ma2mba.errors import UserError
from ma2mba.files import atomic_write, refuse_link
from ma2mba.text import brief, read_json

FORMAT = "ma2mba answers 1"


@dataclass(frozen=True)
class RunFile:
    """What a run is.

    options    what decides its answers: hashes of the model and of the questions, frames, dtype, ...
    about      what does not: the path of the model, of the questions, ...
    questions  the number of questions of each part
    """

    options: dict[str, Any]
    about: dict[str, Any]
    questions: list[int]

    @property
    def id(self) -> str:
        """A hash of the options, which every answer carries."""
        text = json.dumps([FORMAT, self.options, self.questions], sort_keys=True)
        return xxhash.xxh3_64_hexdigest(text.encode())

    def claim(self, path: Path, *, fresh: bool = False) -> None:
        """Write the run to `path`, unless it is there. Raise UserError, naming the options, if it is another run."""
        refuse_link(path)
        if not fresh and path.exists():
            return RunFile.read(path).require(self.options, self.about, path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            json.dump({"format": FORMAT, "run": self.id} | asdict(self), file, indent=1)
            file.write("\n")

    def require(self, options: Mapping[str, Any], about: Mapping[str, Any], path: Path) -> None:
        """Raise UserError, naming what differs, if one of `options` is another one than in this run."""
        differing = [
            f"{key.replace('_', ' ')}: {_shown(self.options, self.about, key)} there, {_shown(options, about, key)} now"
            for key in options
            if options[key] != self.options.get(key)
        ]
        if differing:
            remedy = "Use the same options, name another --out, or start over with --fresh"
            raise UserError(f"{path}: the answers there are of another run ({'; '.join(differing)}). {remedy}")

    def missing(self, answers: Sequence[int]) -> list[str]:
        """Return a line for each part that has fewer answers than questions. `answers`: how many each part has."""
        return [
            f"part {number}/{len(answers)} has {have:,} of {wanted:,} answers"
            for number, (have, wanted) in enumerate(zip(answers, self.questions, strict=True))
            if have < wanted
        ]

    @staticmethod
    def read(path: Path) -> "RunFile":
        """Return the run of a file. Raise UserError if there is none."""
        if not os.path.lexists(path):
            raise UserError(f"{path}: does not exist. Name the --out of an evaluation")
        found = read_json(path)
        try:
            if found["format"] != FORMAT:
                raise ValueError(f"its format is {brief(found['format'])}, and this version reads {FORMAT!r}")
            run = RunFile(dict(found["options"]), dict(found["about"]), [int(count) for count in found["questions"]])
            if run.id != found["run"]:
                raise ValueError("its options were changed")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not the options of a run ({error}). Start over with --fresh") from error
        return run


def _shown(options: Mapping[str, Any], about: Mapping[str, Any], key: str) -> str:
    """Return an option as a message shows it: of a hash, the first digits, and what was hashed."""
    value = options.get(key)
    return f"{about[key]} ({str(value)[:8]})" if key in about else str(value)
