"""The grid of a needle evaluation: which symbol is shown at which depth of a video of which length."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from ma2mba.annotations.choices import choice_prompt
from ma2mba.errors import UserError
from ma2mba.evaluation.items import Item
from ma2mba.text import brief
from ma2mba.video.synthetic.movie import Needle, plan_needle
from ma2mba.video.synthetic.scenes import NEEDLE_QUESTION, NEEDLES

SHORTEST, LONGEST = 4, 86_400
"""The lengths in seconds that --lengths accepts."""
DIGITS = 20
"""Characters of a length that are converted to a number."""
MOST_DEPTHS = 101


@dataclass(frozen=True)
class Grid:
    """The lengths in seconds, the depths (0: start of the video, 1: its end), the questions about each length."""

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    questions: int
    seed: int
    hide_options: bool = False

    def __post_init__(self) -> None:
        if self.questions < len(self.depths):
            raise UserError(
                f"--questions {self.questions}: fewer than the {len(self.depths)} depths. Ask at least one each"
            )

    @property
    def options(self) -> dict[str, Any]:
        """The options of a run: what decides its questions."""
        return {
            "needle_lengths": list(self.lengths),
            "needle_depths": list(self.depths),
            "questions_each": self.questions,
            "seed": self.seed,
            "hide_options": self.hide_options,
        }

    def places(self) -> Iterator["Place"]:
        """Yield the place of each question: the lengths in order, and in each length the depths in turn.

        The eight symbols are in turn too. When a symbol would meet the same depth again, the turn moves on by one, so
        that each depth has all symbols.
        """
        kinds = random.Random(f"{self.seed}/needle/kinds").sample(list(NEEDLES), len(NEEDLES))
        period = math.lcm(len(kinds), len(self.depths))
        for length in self.lengths:
            for number in range(self.questions):
                kind = kinds[(number + number // period) % len(kinds)]
                yield Place(length, self.depths[number % len(self.depths)], kind, number)


@dataclass(frozen=True)
class Place:
    """Where a needle is: the length of its video in seconds, its depth, its symbol, and its number in this length."""

    length: int
    depth: float
    kind: str
    number: int

    @property
    def id(self) -> str:
        return f"{self.length}s-{self.number:03d}"

    @property
    def task(self) -> str:
        """The name of the depth, for the accuracy of each depth."""
        return f"depth {self.depth:.2f}"

    def random(self, grid: Grid) -> random.Random:
        return random.Random(f"{grid.seed}/needle/{self.id}")

    def needle(self, grid: Grid) -> Needle:
        """Return the needle: 1 to 2 s at this depth of a video of this length."""
        return plan_needle(self.length, self.kind, self.random(grid), self.depth)


def question_about(place: Place, grid: Grid, medium: Path, end: float | None = None) -> Item:
    """Return the question about a needle in a medium of which the seconds before `end` are watched.

    Its options are in another order for each question.
    """
    options = random.Random(f"{grid.seed}/needle/{place.id}/options").sample(list(NEEDLES), len(NEEDLES))
    return Item(
        id=place.id,
        medium=medium,
        question=NEEDLE_QUESTION,
        gold=place.kind,
        prompt=NEEDLE_QUESTION if grid.hide_options else choice_prompt(NEEDLE_QUESTION, options),
        options=tuple(options),
        shown=not grid.hide_options,
        gold_index=options.index(place.kind),
        end=end,
        task=place.task,
        duration_group=str(place.length),
        needle=(("length", place.length), ("depth", place.depth)),
    )


def parse_lengths(text: str) -> tuple[int, ...]:
    """Convert "60,600,3600" to whole seconds, in increasing order. Raise UserError for a bad length."""
    lengths = set()
    for word in text.split(","):
        if not (word.strip().isascii() and word.strip().isdigit()):
            raise UserError(f"--lengths {brief(text)}: {brief(word)} is not a whole number of seconds. Use 60,600,3600")
        if len(word) > DIGITS or not SHORTEST <= int(word) <= LONGEST:
            raise UserError(
                f"--lengths {brief(text)}: {brief(word)} is out of range. Use {SHORTEST} to {LONGEST} seconds"
            )
        if int(word) in lengths:
            raise UserError(f"--lengths {brief(text)}: {word} is there twice. Name each length once")
        lengths.add(int(word))
    return tuple(sorted(lengths))


def parse_depths(text: str) -> tuple[float, ...]:
    """Convert "0:1:0.1" (first:last:step) or "0,0.5,1" to increasing depths. Raise UserError for a bad depth."""
    words = text.split(":") if ":" in text else text.split(",")
    if len(words) > MOST_DEPTHS:
        raise UserError(f"--depths {brief(text)}: {len(words)} depths. Name at most {MOST_DEPTHS}")
    numbers = [_depth(word, text) for word in words]
    if ":" in text:
        numbers = _steps(numbers, text)
    for number in numbers:
        if not 0 <= number <= 1:
            raise UserError(f"--depths {brief(text)}: {number} is out of range. Use 0 (start) to 1 (end)")
        if numbers.count(number) > 1:
            raise UserError(f"--depths {brief(text)}: {number} is there twice. Name each depth once")
    return tuple(float(number) for number in sorted(numbers))


def _depth(word: str, text: str) -> Decimal:
    try:
        number = Decimal(word.strip())
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite():
        raise UserError(f"--depths {brief(text)}: {brief(word)} is not a number. Use 0:1:0.1, or 0,0.5,1")
    return number


def _steps(numbers: list[Decimal], text: str) -> list[Decimal]:
    """Return first, first + step, ... up to last, which is included."""
    if len(numbers) != 3:
        raise UserError(f"--depths {brief(text)}: not first:last:step. Use 0:1:0.1, or 0,0.5,1")
    first, last, step = numbers
    if step < Decimal("0.01") or last < first:
        problem = f"the step {step} is below 0.01" if step < Decimal("0.01") else f"{last} is before {first}"
        raise UserError(f"--depths {brief(text)}: {problem}. Use first:last:step, for example 0:1:0.1")
    if not 0 <= first <= last <= 1:
        wrong = first if not 0 <= first <= 1 else last
        raise UserError(f"--depths {brief(text)}: {wrong} is out of range. Use 0 (start) to 1 (end)")
    return [first + step * n for n in range(int((last - first) / step) + 1)]
