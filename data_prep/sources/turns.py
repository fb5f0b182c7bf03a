"""The turns of a clip, made from published conversations, questions, options and captions."""

import string
import zlib
from collections.abc import Sequence

from ma2mba.annotations.conversation import Exchange
from ma2mba.model.conversation import Turn

CHOOSE = "Please provide your answer by stating the letter followed by the full option."
"""The request after the options, as in LLaVA-Video-178K."""
DESCRIBE_VIDEO = (
    "Give a brief description of the video.",
    "Provide a brief description of the given video.",
    "Render a clear and concise summary of the video.",
    "Share a concise interpretation of the video provided.",
    "Summarize the visual content of the video.",
    "Write a terse but informative summary of the video.",
)
"""Requests of LLaVA-Pretrain, changed from images to videos, for captions that are published without a request."""


def conversation_turns(conversation: Sequence[Exchange]) -> tuple[Turn, ...]:
    """Return a published conversation as turns."""
    return tuple(turn for exchange in conversation for turn in question_turns(exchange.human, exchange.gpt))


def question_turns(question: str, answer: str) -> tuple[Turn, ...]:
    """Return a question and its answer, both unchanged."""
    return Turn("user", question), Turn("assistant", answer)


def choice_turns(question: str, options: Sequence[str], answer: int) -> tuple[Turn, ...]:
    """Return a multiple-choice question and its answer, worded as in LLaVA-Video-178K.

    `answer` is the index of the right option. The user's turn is the question, "Options:", a line per option
    ("A. food.") and CHOOSE. The assistant's turn is the line of the right option.
    """
    lines = [f"{letter}. {_sentence(text)}" for letter, text in zip(string.ascii_uppercase, options, strict=False)]
    return question_turns("\n".join([question, "Options:", *lines, CHOOSE]), lines[answer])


def caption_turns(key: str, caption: str) -> tuple[Turn, ...]:
    """Return a request for a description and the caption. The same key always gets the same request."""
    return question_turns(DESCRIBE_VIDEO[zlib.crc32(key.encode()) % len(DESCRIBE_VIDEO)], caption)


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."
