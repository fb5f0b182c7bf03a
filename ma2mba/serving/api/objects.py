"""The objects of OpenAI's chat completions: what an answer, a piece of it, its usage and its log-probabilities look
like.
"""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ma2mba.serving.contract import Likely, Piece, Usage

FINISH = {"end": "stop", "stop": "stop", "repetition": "stop", "length": "length"}
"""Why an answer ended -> OpenAI's word for it."""
LOWEST = -9999.0
"""OpenAI's value for a token without probability: JSON has no infinity."""


@dataclass
class Written:
    """What was written of one answer so far."""

    text: str = ""
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    reason: str | None = None


class Reply:
    """Makes the objects of one request: they share an id, a time and a model."""

    def __init__(self, model: str, logprobs: bool, drawn: bool):
        """`logprobs`: the client wants log-probabilities. `drawn`: tokens are drawn, and the seeds are told."""
        self._logprobs, self._drawn = logprobs, drawn
        self._head = {"id": f"chatcmpl-{secrets.token_hex(16)}", "created": int(time.time()), "model": model}

    def completion(self, answers: Sequence[Written], usage: Usage) -> dict[str, Any]:
        """Return the whole answers."""
        choices = [
            {
                "index": number,
                "message": {"role": "assistant", "content": answer.text, "refusal": None},
                "logprobs": {"content": answer.logprobs, "refusal": None} if self._logprobs else None,
                "finish_reason": answer.reason,
            }
            for number, answer in enumerate(answers)
        ]
        return self._head | {"object": "chat.completion", "choices": choices} | self._facts(usage)

    def first(self, number: int) -> dict[str, Any]:
        """Return the event that begins an answer."""
        return self._chunk(number, {"role": "assistant", "content": ""}, None, None)

    def pieces(self, piece: Piece) -> list[dict[str, Any]]:
        """Return the events of new text."""
        events = []
        logprobs = {"content": logprobs_of(piece), "refusal": None} if self._logprobs and piece.tokens else None
        if piece.text or logprobs:
            events.append(self._chunk(piece.answer, {"content": piece.text}, None, logprobs))
        if piece.reason:
            events.append(self._chunk(piece.answer, {}, FINISH[piece.reason], None))
        return events

    def usage(self, usage: Usage) -> dict[str, Any]:
        """Return the last event of a stream whose client wants to know the usage."""
        return self._head | {"object": "chat.completion.chunk", "choices": []} | self._facts(usage)

    def _facts(self, usage: Usage) -> dict[str, Any]:
        """Return the usage, and what OpenAI has no field for: seconds of video, and the seeds of drawn answers."""
        seeds = {"seeds": list(usage.seeds)} if self._drawn else {}
        return {
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.answer_tokens,
                "total_tokens": usage.prompt_tokens + usage.answer_tokens,
                "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
            },
            "ma2mba": {"video_seconds": round(usage.seconds_of_video, 3)} | seeds,
        }

    def _chunk(self, number: int, delta: dict[str, Any], reason: str | None, logprobs: Any) -> dict[str, Any]:
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._head | {"object": "chat.completion.chunk", "choices": [choice]}


def add_piece(answers: Sequence[Written], piece: Piece) -> None:
    """Add new text to the answers."""
    answer = answers[piece.answer]
    answer.text += piece.text
    answer.logprobs += logprobs_of(piece)
    answer.reason = FINISH[piece.reason] if piece.reason else None


def logprobs_of(piece: Piece) -> list[dict[str, Any]]:
    """Return OpenAI's objects for the tokens of a piece."""
    alternatives = piece.alternatives or ((),) * len(piece.tokens)
    return [
        _likely(token) | {"top_logprobs": [_likely(other) for other in others]}
        for token, others in zip(piece.tokens, alternatives, strict=True)
    ]


def _likely(token: Likely) -> dict[str, Any]:
    return {
        "token": token.text,
        "logprob": max(token.logprob, LOWEST),
        "bytes": list(token.text.encode(errors="surrogatepass")),
    }
