"""Options and right answers of multiple-choice questions, as benchmarks publish them."""

import re
import string
from collections.abc import Sequence
from typing import Any

from ma2mba.annotations.fields import RecordError, need, need_text

LETTERS = string.ascii_uppercase
CHOOSE = "Please provide your answer by stating the letter followed by the full option."
"""The request after the options, as in LLaVA-Video-178K."""
_LETTERED = re.compile(r"\(?([A-Z])\s*[.):]\s*")
_OPTION_IN_BRACKETS = re.compile(r"\(([A-Z])\)\s*(?=\S)")
_OPTION_LINE = re.compile(r"^\s*\(?([A-Z])\s*[.):]\s*(?=\S)", re.MULTILINE)


def choice_lines(options: Sequence[str]) -> list[str]:
    """Return options as LLaVA-Video-178K words them, in questions and as answers: "A. food."."""
    texts = (text.strip() for text in options)
    sentences = (text if text.endswith((".", "!", "?")) else f"{text}." for text in texts)
    return [f"{letter}. {text}" for letter, text in zip(LETTERS, sentences, strict=False)]


def choice_prompt(question: str, options: Sequence[str]) -> str:
    """Return a multiple-choice question as LLaVA-Video-178K words it: question, "Options:", options and CHOOSE."""
    return "\n".join([question, "Options:", *choice_lines(options), CHOOSE])


def need_options(record: Any, key: str) -> tuple[str, ...]:
    """Return record[key], 2 to 26 texts, without the letters before them ("A. red"). Raise RecordError otherwise.

    Some options are blank in published files, but never all.
    """
    options = need(record, key, list)
    if not all(isinstance(option, str) for option in options) or not any(map(str.strip, options)):
        raise RecordError(f"{key} are not all texts")
    return checked([option.strip() for option in options], key)


def checked(options: Sequence[str], key: str) -> tuple[str, ...]:
    """Return options without letters. Raise RecordError unless there are 2 to 26."""
    if not 2 <= len(options) <= len(LETTERS):
        raise RecordError(f"{key} has {len(options)} options, not 2 to {len(LETTERS)}")
    found = [_LETTERED.match(option) for option in options]
    if all(match and match[1] == letter for match, letter in zip(found, LETTERS, strict=False)):
        options = [option[match.end() :].strip() for option, match in zip(options, found, strict=True) if match]
    return tuple(options)


def need_letter(record: Any, key: str, options: Sequence[str]) -> int:
    """Return the index of the option whose letter is record[key]. Raise RecordError if there is none."""
    text = need_text(record, key)
    letter = text.strip("(). ").upper()
    if len(letter) != 1 or letter not in LETTERS[: len(options)]:
        raise RecordError(f"{key} is {text!r:.100}, not a letter from A to {LETTERS[len(options) - 1]}")
    return LETTERS.index(letter)


def need_option(record: Any, key: str, options: Sequence[str]) -> int:
    """Return the index of the option that record[key] repeats, which may be a blank one.

    If there is none, one that differs in case or in a full stop counts. Raise RecordError if there is none either.
    """
    text = need(record, key, str).strip() if record.get(key) != "" else ""
    if text in options:
        return options.index(text)
    near = [i for i, option in enumerate(options) if option.casefold().rstrip(". ") == text.casefold().rstrip(". ")]
    if len(near) != 1:
        raise RecordError(f"{key} {text!r:.100} is not among its options")
    return near[0]


def need_answer(record: Any, key: str, options: Sequence[str]) -> int:
    """Return the index of the option that record[key] names: by its text, its letter or both ("B. red")."""
    text = record[key].strip() if isinstance(record.get(key), str) else ""
    if text in options:
        return options.index(text)
    if len(text.strip("(). ")) == 1 and text.strip("(). ").isalpha():
        return need_letter(record, key, options)
    lettered = _LETTERED.match(text)
    if lettered and (lettered[1], text[lettered.end() :].strip()) in zip(LETTERS, options, strict=False):
        return LETTERS.index(lettered[1])
    return need_option(record, key, options)


def split_options(text: str) -> tuple[str, tuple[str, ...]]:
    """Return a question and the options that follow it in one text: "(A) red", "B. blue", each on a line.

    Options in brackets may also stand on one line. Lines after the last option's are no part of it. Return the text and
    () if it holds no options.
    """
    for pattern in (_OPTION_LINE, _OPTION_IN_BRACKETS):
        marks = list(pattern.finditer(text))
        first = next((i for i, mark in enumerate(marks) if mark[1] == "A"), len(marks))
        marks = [mark for mark, letter in zip(marks[first:], LETTERS, strict=False) if mark[1] == letter]
        if len(marks) < 2:
            continue
        ends = [*(mark.start() for mark in marks[1:]), len(text)]
        options = [text[mark.end() : end].strip().split("\n")[0].strip() for mark, end in zip(marks, ends, strict=True)]
        return text[: marks[0].start()].strip(), tuple(options)
    return text.strip(), ()
