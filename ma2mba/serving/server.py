"""Runs the server: listens before the model is loaded, and stops gracefully at SIGINT and SIGTERM."""

import asyncio
import logging
import os
import signal
import socket
import stat
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from ma2mba.errors import UserError
from ma2mba.limits import PREFIX
from ma2mba.serving.api.parts import Parts
from ma2mba.serving.app import create_app
from ma2mba.serving.auth import read_tokens
from ma2mba.serving.engine import ServingEngine
from ma2mba.serving.library import MediaLibrary
from ma2mba.serving.settings import Settings

log = logging.getLogger(__name__)
CONNECTIONS = 2048
"""Connections after which the server answers with status 503."""
KEEP_ALIVE_SECONDS = 75
"""Seconds for which an idle connection is kept: longer than clients keep it, or they would find it closed."""
MARGIN_SECONDS = 5
"""Seconds after the grace in which answers that were cut off are told so."""


def serve(settings: Settings) -> None:
    """Serve until a signal comes. Raise UserError if the settings, the address or the model cannot be used."""
    if settings.token_file:
        read_tokens(settings.token_file)
        warn_if_readable(settings.token_file)
    os.environ[f"{PREFIX}VIDEO_HOURS"] = repr(settings.max_video_hours)  # for the processes that decode
    with _listen(settings) as listener:
        engine = ServingEngine.open(settings)
        app = create_app(settings, engine, MediaLibrary(settings, engine.forget))
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=CONNECTIONS,
            proxy_headers=bool(settings.proxies),
            forwarded_allow_ips=list(settings.proxies),
            lifespan="off",  # `Server` runs it: uvicorn would print a UserError with its traceback
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=int(settings.grace_seconds + MARGIN_SECONDS),
        )
        # uvicorn raises the signals again when it has stopped; a server that has stopped gracefully exits with code 0.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        Server(config, app).run(sockets=[listener])
    log.info("stopped")


class Server(uvicorn.Server):
    """uvicorn's server, which tells the engine at once that it is to stop: uvicorn first waits for all connections."""

    def __init__(self, config: uvicorn.Config, app: FastAPI):
        super().__init__(config)
        self._parts: Parts = app.state.parts
        self._lifespan = app.router.lifespan_context(app)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self._lifespan.__aenter__()
        await super().startup(sockets)
        for listener in sockets or []:
            _tell(self._parts.settings, listener.getsockname()[1])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        log.info("stopping: answers may take %g s to end", self._parts.settings.grace_seconds)
        stopping = asyncio.create_task(self._parts.stop())
        await super().shutdown(sockets)
        await stopping
        await self._lifespan.__aexit__(None, None, None)


def _listen(settings: Settings) -> socket.socket:
    """Return a socket with the address of the settings. Raise UserError if it cannot be used."""
    host = settings.host.strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        where = f"--host {settings.host} --port {settings.port}"
        raise UserError(f"{where}: cannot be used ({error.strerror or error}). Name another address or port") from error
    return listener


def _tell(settings: Settings, port: int) -> None:
    shown = f"[{settings.host}]" if ":" in settings.host else settings.host
    if settings.no_auth:
        log.warning("--no-auth: everybody who reaches %s port %d may ask and upload, without a token", shown, port)
    log.info("serving %s at http://%s:%d/ and, for OpenAI's clients, /v1", settings.model_name, shown, port)


def warn_if_readable(path: Path) -> None:
    if os.stat(path).st_mode & (stat.S_IRGRP | stat.S_IROTH):
        log.warning("%s: other users of this machine can read the tokens. Run: chmod 600 %s", path, path)
