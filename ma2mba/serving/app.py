"""Joins the interface, the page, the library and the engine into one application."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ma2mba.errors import UserError
from ma2mba.serving.api import chat, health, models, videos
from ma2mba.serving.api.body import SMALL, Budget, body_length
from ma2mba.serving.api.parts import Parts
from ma2mba.serving.api.readings import Readings
from ma2mba.serving.api.stream import ClientGone
from ma2mba.serving.auth import Clients, read_tokens
from ma2mba.serving.contract import Busy, Engine, Library
from ma2mba.serving.errors import FAULT, Refused, error_object, headers_of, refusal
from ma2mba.serving.guard import Guard
from ma2mba.serving.metrics import Counting, Metrics
from ma2mba.serving.page.mount import mount_page
from ma2mba.serving.settings import Settings

log = logging.getLogger(__name__)
GONE = 499
"""The status in the log of a request whose client has gone."""


def create_app(settings: Settings, engine: Engine, library: Library) -> FastAPI:
    """Return the application that serves `engine`'s answers about `library`'s media."""
    clients = Clients(read_tokens(settings.token_file) if settings.token_file else {})
    metrics, readings = Metrics(engine, library), Readings(engine, library)
    parts = Parts(settings, engine, library, clients, readings, Budget(), metrics, int(time.time()))
    app = FastAPI(title="ma2mba", docs_url=None, redoc_url=None, openapi_url=None, lifespan=_lifespan)
    app.state.parts = parts
    for kind in (UserError, Busy, HTTPException, RequestValidationError, ClientGone, ClientDisconnect, Exception):
        app.add_exception_handler(kind, _refuse)
    for router in (chat.router, models.router, videos.router, health.router):
        app.include_router(router)
    app.add_api_route("/v1/{rest:path}", _no_route, methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    app = mount_page(app, settings, engine, library, clients)
    app.add_middleware(Counting, metrics=metrics)
    app.add_middleware(Guard, hosts=settings.host_names)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Clean up what a killed server left, and stop everything at the end."""
    parts: Parts = app.state.parts
    await parts.library.start()
    sweeping = asyncio.create_task(parts.readings.sweep())
    try:
        yield
    finally:
        sweeping.cancel()
        with suppress(asyncio.CancelledError):
            await sweeping
        await parts.stop()
        await parts.library.close()


async def _refuse(request: Request, error: Exception) -> Response:
    """Answer with OpenAI's error object."""
    if isinstance(error, ClientGone | ClientDisconnect):
        return Response(status_code=GONE)
    told = _told(request, error)
    length = body_length(request)
    large = length > SMALL if length is not None else "transfer-encoding" in request.headers
    close = {"Connection": "close"} if large else {}  # otherwise the client goes on sending what nobody reads
    return JSONResponse(error_object(told), told.status, headers_of(told) | close)


def _told(request: Request, error: Exception) -> Refused:
    if isinstance(error, UserError | Busy):
        return refusal(error)
    if isinstance(error, HTTPException):
        remedy = "See /v1/models, /v1/chat/completions, /v1/videos, /health and /metrics"
        return Refused(f"{request.method} {request.url.path}: {error.detail}. {remedy}", error.status_code, "no_route")
    if isinstance(error, RequestValidationError):
        return Refused("the request has a wrong parameter. Correct it", 400, "invalid_value")
    return FAULT


async def _no_route(rest: str) -> None:
    """Answer for paths that OpenAI has and this server has not: otherwise the page would."""
    raise HTTPException(404, "there is no such route")
