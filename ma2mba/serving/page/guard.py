"""Stands before Gradio and lets through only what the page needs.

Gradio has routes that take uploads, serve files, fetch addresses and run events without the page. None of them is
reached: everything that is not listed here is unknown (404). Its events carry text and nothing else, so that no event
can name a file, and a window's results go to the visitor who opened the window.
"""

import json
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ma2mba.serving.auth import Clients
from ma2mba.serving.errors import Refused, error_object
from ma2mba.serving.page.assets import login_page
from ma2mba.serving.page.visitors import Visitors
from ma2mba.strings import fits_utf8

OPEN = ("/assets/", "/static/", "/theme.css", "/favicon.ico", "/manifest.json")
"""What everybody may load: the scripts and styles of Gradio's package."""
JOIN, DATA = "/gradio_api/queue/join", "/gradio_api/queue/data"
BODY_BYTES = 1 << 18
"""Bytes of the largest event: a question."""
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'none'"
)
"""The browser asks no other host for anything. Gradio makes its templates into functions, hence 'unsafe-eval'."""


def check_origin(request: Request) -> None:
    """Raise Refused (403) if another site sent the request, or a page on another port of this host.

    The browser sends our cookie with the latter. A request whose Origin is another host was refused before.
    """
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise Refused("another site sent this request. Use the page of this server", 403, "other_origin")


class PageGuard:
    """Wraps Gradio's application. `inputs`: how many values each of the page's events has, by its number."""

    def __init__(self, app: ASGIApp, visitors: Visitors, clients: Clients, inputs: Mapping[int, int]):
        self._app, self._visitors, self._clients, self._inputs = app, visitors, clients, inputs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"the page has no {scope['type']}")
        request = Request(scope, receive)

        async def safe_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name in [name for name in headers if name.startswith("access-control-")]:
                    del headers[name]
                headers["Content-Security-Policy"] = POLICY
            await send(message)

        try:
            await self._serve(request, safe_send)
        except Refused as error:
            await JSONResponse(error_object(error), error.status)(scope, receive, safe_send)

    async def _serve(self, request: Request, send: Send) -> None:
        path = request.url.path
        if request.method in ("GET", "HEAD"):
            if path == "/":
                return await self._front(request, send)
            if path.startswith(OPEN):
                return await self._forward(request, send)
            if path == DATA:
                return await self._results(request, send)
        elif request.method == "POST" and path == JOIN:
            return await self._event(request, send)
        raise Refused(f"{path}: unknown. The interface is under /v1, and the page at /", 404, "not_found")

    async def _forward(self, request: Request, send: Send, query: bytes = b"", body: bytes = b"") -> None:
        """Let Gradio answer, with this query and body instead of the request's own."""
        headers = [pair for pair in request.scope["headers"] if pair[0] not in (b"content-length", b"origin")]
        if body:
            headers.append((b"content-length", str(len(body)).encode()))
        parts = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            return parts.pop() if parts else await request.receive()

        await self._app({**request.scope, "query_string": query, "headers": headers}, receive, send)

    async def _front(self, request: Request, send: Send) -> None:
        """Show the page. A new visitor gets a session, or is asked for the token first."""
        if self._visitors.find(request.cookies):
            return await self._forward(request, send)
        if self._clients.needs_token:
            return await HTMLResponse(login_page(), 401)(request.scope, request.receive, send)
        key = self._visitors.start(self._clients.of_request(request), request.cookies)

        async def with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                response = Response()
                set_cookie(response, request, self._visitors.cookie, key)
                MutableHeaders(scope=message).append("Set-Cookie", response.headers["set-cookie"])
            await send(message)

        await self._forward(request, with_cookie)

    async def _results(self, request: Request, send: Send) -> None:
        """Stream the results of a window to the visitor who opened it."""
        name = request.query_params.get("session_hash", "")
        tab = self._visitors.tab(self._visitors.expect(request.cookies), name)
        if not tab.used:  # Gradio would fail after its answer has begun
            raise Refused("this window has sent no event. Load the page again", 404, "not_found")
        tab.opened()
        try:
            await self._forward(request, send, f"session_hash={name}".encode())
        finally:
            tab.closed()

    async def _event(self, request: Request, send: Send) -> None:
        """Pass an event on, with nothing in it but the text that the page sends."""
        check_origin(request)
        visitor = self._visitors.expect(request.cookies)
        event = clean_event(await _bounded(request), self._inputs)
        self._visitors.tab(visitor, event["session_hash"]).joined()
        await self._forward(request, send, body=json.dumps(event).encode())


def set_cookie(response: Response, request: Request, name: str, value: str) -> None:
    """Set the cookie of a session: scripts cannot read it, and other sites' forms do not send it."""
    response.set_cookie(name, value, httponly=True, samesite="lax", secure=request.url.scheme == "https")


async def _bounded(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES:
            raise Refused(f"the question is longer than {BODY_BYTES:,} bytes. Ask a shorter one", 413, "too_long")
    return bytes(body)


def clean_event(body: bytes, inputs: Mapping[int, int]) -> dict[str, Any]:
    """Return an event of Gradio with only the keys that the page needs. Raise Refused (400) if it is none.

    Gradio and the handlers fail at other events, and fill the log.
    """
    try:
        event = json.loads(body)
        number, name = event["fn_index"], event["session_hash"]
        data = ["" if value is None else value for value in event["data"]]
        good = isinstance(event["data"], list) and all(isinstance(value, str) and fits_utf8(value) for value in data)
        good = good and type(number) is int and inputs.get(number) == len(data) and isinstance(name, str)
    except (ValueError, KeyError, TypeError, RecursionError):
        good = False
    if not good:
        raise Refused("this is not an event of the page. Load the page again", 400, "bad_event")
    trigger = event.get("trigger_id")
    trigger = trigger if isinstance(trigger, int) else None
    return {"data": data, "fn_index": number, "session_hash": name, "trigger_id": trigger, "event_data": None}
