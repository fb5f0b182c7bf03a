"""The turns of a clip, made from published conversations, questions, options and captions."""

import zlib
from collections.abc import Sequence

from ma2mba.annotations.choices import choice_lines, choice_prompt
from ma2mba.annotations.conversation import Exchange
from ma2mba.model.conversation import Turn

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

    `answer` is the index of the right option. The user's turn is `choice_prompt`; the assistant's turn is the line of
    the right option ("A. food.").
    """
    return question_turns(choice_prompt(question, options), choice_lines(options)[answer])


def caption_turns(key: str, caption: str) -> tuple[Turn, ...]:
    """Return a request for a description and the caption. The same key always gets the same request."""
    return question_turns(DESCRIBE_VIDEO[zlib.crc32(key.encode()) % len(DESCRIBE_VIDEO)], caption)
