"""The score of an answer."""

import string
from typing import Any

from ma2mba.evaluation.items import Item
from ma2mba.evaluation.parsing import judge, parse_choice

LETTER, WORDS, LIKELIHOOD = "letter", "words", "likelihood"
"""How an answer was judged: by the option that it names, by its words, by the likelihood of the options."""


def judged(item: Item, prediction: str) -> dict[str, Any]:
    """Return the fields of a record that judge an answer in words. An answer that names no option is wrong."""
    if not (item.options and item.shown):
        return _fields(WORDS, None, judge(prediction, item.gold))
    letter = parse_choice(prediction, item.options)
    right = item.gold_index is not None and letter == string.ascii_uppercase[item.gold_index]
    return _fields(LETTER, letter, right)


def chosen(item: Item, option: int) -> dict[str, Any]:
    """Return the fields of a record that judge an option chosen by its likelihood."""
    return _fields(LIKELIHOOD, string.ascii_uppercase[option], option == item.gold_index)


def _fields(parser: str, choice: str | None, correct: bool) -> dict[str, Any]:
    return {"parser": parser, "choice": choice, "correct": correct, "score": float(correct)}
