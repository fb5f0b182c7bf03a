"""Conversations about one video: what was asked, what was answered, and what the page shows of it."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from ma2mba.serving.contract import Answering, Engine, Medium, Question, Turn


@dataclass
class Exchange:
    """A question and its answer. `note` is what the page adds; `problem` is set when the answer failed."""

    question: str
    answer: str = ""
    note: str = ""
    problem: bool = False


@dataclass
class Talk:
    """What a visitor has asked about a video."""

    exchanges: list[Exchange] = field(default_factory=list)
    busy: bool = False

    def turns(self, medium: Medium, question: str) -> tuple[Turn, ...]:
        """Return the conversation that ends with `question`. Exchanges without an answer are left out."""
        turns: list[Turn] = []
        for exchange in self.exchanges:
            if exchange.answer:
                turns += [Turn("user", (exchange.question,)), Turn("assistant", (exchange.answer,))]
        turns.append(Turn("user", (question,)))
        return (Turn("user", (medium, *turns[0].parts)), *turns[1:])

    def shown(self) -> list[dict[str, str]]:
        """Return what the page shows: one entry for each bubble."""
        bubbles = []
        for exchange in self.exchanges:
            bubbles.append({"role": "user", "text": exchange.question})
            role = "problem" if exchange.problem else "assistant"
            bubbles.append({"role": role, "text": exchange.answer, "note": exchange.note})
        if self.busy and bubbles:
            bubbles[-1]["role"] = "writing"
        return bubbles


async def answer(engine: Engine, question: Question, exchange: Exchange) -> AsyncGenerator[None, None]:
    """Write the answer into `exchange` piece by piece; yield after each. Cancel the answer when closed."""
    answering: Answering = engine.ask(question)
    try:
        async for piece in answering:
            exchange.answer += piece.text
            if piece.reason == "length":
                exchange.note = "The answer reached its longest length. "
            yield
        if question.so_far:
            exchange.note += f"About the first {clock(answering.usage.seconds_of_video)} of the video. "
    finally:
        answering.cancel()


def clock(seconds: float) -> str:
    """Return seconds as 3:20 or 1:03:20."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
