"""What every request must pass: it comes from no page of another site, and to no other host's name."""

from collections.abc import Set
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ma2mba.serving.errors import Refused, error_object

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
PORTS = {"http": "80", "https": "443"}


class Guard:
    """Refuses what a page of another site sends through a visitor's browser. There is no CORS.

    `hosts`: the names under which the server may be asked for, None: all. Without tokens, another name means that a
    site has let its own name point to this machine (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, hosts: Set[str] | None):
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)

        async def add_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        error = self._problem(Headers(scope=scope))
        if error is None:
            return await self._app(scope, receive, add_headers)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        await JSONResponse(error_object(error), error.status)(scope, receive, add_headers)

    def _problem(self, headers: Headers) -> Refused | None:
        host = headers.get("host", "")
        if self._hosts is not None and _name(host) not in self._hosts:
            remedy = "Use http://127.0.0.1 or http://localhost, or start the server with --token-file or --no-auth"
            return Refused(f"the server does not answer to this host name. {remedy}", 403, "wrong_host")
        origin = headers.get("origin")
        foreign = origin is not None and not _same(origin, host)
        if foreign or (headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate"):
            remedy = "Open the server's own page; behind a reverse proxy, let it pass the header Host on"
            return Refused(f"a page of another site sends this request. {remedy}", 403, "cross_site")
        return None


def _name(host: str) -> str:
    """Return a Host header's name or address, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _same(origin: str, host: str) -> bool:
    """Return whether a page's origin is the host that it asks. A proxy may have taken the TLS away."""
    try:
        page, asked = urlsplit(origin), urlsplit(f"//{host}")
        port = str(page.port or PORTS.get(page.scheme, ""))
        ports = {str(asked.port)} if asked.port else set(PORTS.values())
    except ValueError:
        return False
    return page.hostname is not None and page.hostname == asked.hostname and port in ports
