"""Joins the interface, the page, the library and the engine into one application."""

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from ma2mba.errors import UserError
from ma2mba.serving.auth import Clients, read_tokens
from ma2mba.serving.contract import Busy, Engine, Library
from ma2mba.serving.errors import Refused, error_object
from ma2mba.serving.page.mount import mount_page
from ma2mba.serving.settings import Settings


def create_app(settings: Settings, engine: Engine, library: Library) -> FastAPI:
    """Return the application that serves `engine`'s answers about `library`'s media."""
    clients = Clients(read_tokens(settings.token_file) if settings.token_file else {})
    app = FastAPI(title="ma2mba", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.settings, app.state.engine, app.state.library, app.state.clients = settings, engine, library, clients
    app.add_exception_handler(UserError, _refuse)
    app.add_exception_handler(Busy, _refuse)
    return mount_page(app, settings, engine, library, clients)


async def _refuse(request: Request, error: Exception) -> JSONResponse:
    """Answer with OpenAI's error object."""
    if isinstance(error, Busy):
        error = Refused(str(error), 429, "busy", retry_after=error.retry_after)
    elif not isinstance(error, Refused):
        error = Refused(str(error))
    headers = {} if error.retry_after is None else {"Retry-After": str(max(1, round(error.retry_after)))}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_object(error), error.status, headers)
