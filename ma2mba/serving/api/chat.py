"""`POST /v1/chat/completions`."""

import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from ma2mba.serving.api.body import expected_bytes, read_json
from ma2mba.serving.api.messages import fetch_turns, parse_messages
from ma2mba.serving.api.objects import Reply, Written, add_piece
from ma2mba.serving.api.parameters import Completion, parse_completion, sampling_of
from ma2mba.serving.api.parts import Client, Parts, Served
from ma2mba.serving.api.stream import DONE, EventStream, Following, event, unless_gone
from ma2mba.serving.contract import Piece, Question, Usage

router = APIRouter()
FIRST_SECONDS = 5.0
"""Seconds for which the first event of a stream is waited for: an error until then has its own HTTP status."""


@router.post("/v1/chat/completions")
async def complete(request: Request, parts: Served, client: Client) -> Response:
    """Answer a question about videos and images, whole or as a stream of events."""
    parts.require_working()
    held = AsyncExitStack()
    try:
        with parts.bodies.hold(expected_bytes(request)):
            wanted, question = await _question(request, parts, client, held)
        answers = _Answers(parts, question, wanted)
        if wanted.stream:
            return await _stream(answers, request, held)
        async with held:
            return JSONResponse(await unless_gone(request, answers.whole()))
    except BaseException:
        await held.aclose()
        raise


async def _question(request: Request, parts: Parts, client: str, held: AsyncExitStack) -> tuple[Completion, Question]:
    """Return the request's parameters and its question, whose media are released when `held` is closed."""
    body = await read_json(request)
    settings = parts.settings
    wanted = parse_completion(body, settings.model_name, min(settings.places, settings.client_places))
    sampling, said = sampling_of(wanted, settings.max_tokens), parse_messages(wanted.messages)
    turns = await unless_gone(request, fetch_turns(said, parts.library, client, held))
    alternatives = wanted.top_logprobs or 0
    return wanted, Question(turns, sampling, client, wanted.n or 1, alternatives, bool(wanted.so_far))


async def _stream(answers: "_Answers", request: Request, held: AsyncExitStack) -> EventStream:
    following = Following(answers.events(), request, held)
    try:
        begun = await following.next(FIRST_SECONDS)
    except TimeoutError:
        begun = None
    except BaseException:
        await following.close()
        raise
    return EventStream(following, begun)


class _Answers:
    """The answers to a question, as one object or as events."""

    def __init__(self, parts: Parts, question: Question, wanted: Completion):
        self._parts, self._question, self._wanted = parts, question, wanted
        drawn = question.sampling.heat > 0
        self._reply = Reply(parts.settings.model_name, bool(wanted.logprobs), drawn)
        self._usage = Usage()

    async def whole(self) -> dict:
        """Return the answers when they are written."""
        answers = [Written() for _ in range(self._question.answers)]
        async for piece in self._pieces():
            add_piece(answers, piece)
        return self._reply.completion(answers, self._usage)

    async def events(self) -> AsyncGenerator[bytes]:
        """Yield the events of a stream."""
        extra = {"usage": None} if self._wanted.wants_usage else {}
        begun: set[int] = set()
        pieces = self._pieces()
        try:
            async for piece in pieces:
                if piece.answer not in begun:
                    begun.add(piece.answer)
                    yield event(self._reply.first(piece.answer) | extra)
                for chunk in self._reply.pieces(piece):
                    yield event(chunk | extra)
        finally:
            await pieces.aclose()
        if self._wanted.wants_usage:
            yield event(self._reply.usage(self._usage))
        yield DONE

    async def _pieces(self) -> AsyncGenerator[Piece]:
        """Yield what the engine writes. An unfinished answer is cancelled."""
        began, metrics = time.monotonic(), self._parts.metrics
        answering = self._parts.engine.ask(self._question)
        self._usage = answering.usage
        first = True
        try:
            async for piece in answering:
                if first:
                    metrics.first_piece(time.monotonic() - began, known=self._usage.cached_tokens > 0)
                    first = False
                yield piece
        finally:
            answering.cancel()
            metrics.answered(self._usage)
