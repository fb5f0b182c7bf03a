"""Fetch a medium from another server: from allowed hosts and public addresses alone, within limits of size and time.

A host name is resolved once for each connection. All its addresses are checked, and the connection goes to a checked
address, so that the name cannot mean another address later. A redirect is checked like the first URL.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

import httpcore

from ma2mba.serving.addresses import address_problem, resolve
from ma2mba.serving.errors import Refused
from ma2mba.terminal import one_line
from ma2mba.text import shorten

PORTS = {"https": 443, "http": 80}
REDIRECTS = 3
"""Redirects that are followed."""
CONNECT_SECONDS = 10.0
SILENT_SECONDS = 30.0
"""Seconds that the other server may send nothing."""
FETCH_SECONDS = 1800.0
"""Seconds that a whole fetch may take."""
MOVED = {301, 302, 303, 307, 308}
LONGEST_URL = 8192


@dataclass(frozen=True)
class Target:
    """A checked URL. `path` includes the query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}{'' if self.port == PORTS[self.scheme] else f':{self.port}'}{self.path}"

    @property
    def name(self) -> str:
        """The last part of the path, as a client may read it."""
        return unquote(self.path.partition("?")[0].rpartition("/")[2], errors="replace") or self.host


@dataclass(frozen=True)
class Remote:
    """A medium that another server is sending. `length`: the bytes that it announces, None if it announces none."""

    name: str
    length: int | None
    blocks: AsyncIterator[bytes]


class Fetcher:
    """Fetches media. `domains`: the allowed hosts; `.example.org` allows example.org and its subdomains.

    `http` allows unencrypted URLs. `context` is for tests: whose certificates are trusted.
    """

    def __init__(self, domains: Iterable[str], http: bool = False, context: ssl.SSLContext | None = None):
        self._domains = [_host(domain.lstrip(".")) for domain in domains if not domain.startswith(".")]
        self._parents = [_host(domain.lstrip(".")) for domain in domains if domain.startswith(".")]
        self._schemes = ("https", "http") if http else ("https",)
        self._context = context or ssl.create_default_context()

    def target(self, url: str) -> Target:
        """Return the parts of a URL. Raise Refused if it is malformed, or not allowed."""
        shown = shorten(one_line(url), 200)
        if len(url) > LONGEST_URL:
            raise Refused(f"{shown}: longer than {LONGEST_URL:,} letters. Use a shorter URL", code="invalid_url")
        try:
            parts = urlsplit(url)
            host, port = _host(parts.hostname or ""), parts.port
        except ValueError as error:
            raise Refused(f"{shown}: not a URL ({error}). Correct it", code="invalid_url") from None
        if any(ord(letter) <= 32 or letter in '\\"<>^`{|}' or ord(letter) == 127 for letter in url):
            raise Refused(f"{shown}: not a URL. Write %XX for other characters than letters", code="invalid_url")
        if parts.scheme not in self._schemes:
            schemes = " or ".join(self._schemes)
            raise Refused(f"{shown}: {parts.scheme}: is not allowed here. Use {schemes}", 403, "forbidden_url")
        if not host:
            raise Refused(f"{shown}: names no host. Correct the URL", code="invalid_url")
        if "@" in parts.netloc:
            raise Refused(f"{url_without_login(parts.netloc)}: URLs with a login are not allowed", 403, "forbidden_url")
        port = port or PORTS[parts.scheme]
        if port not in PORTS.values():
            raise Refused(f"{shown}: port {port} is not allowed. Use port 443 or 80", 403, "forbidden_url")
        if not self._allows(host):
            remedy = "Upload the file, or ask the server's operator to allow this host"
            raise Refused(f"{shown}: the host {host} is not allowed. {remedy}", 403, "forbidden_host")
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._[]")
        query = quote(parts.query, safe="/%:@!$&'()*+,;=~-._?[]")
        return Target(parts.scheme, host, port, f"{path}?{query}" if query else path)

    def _allows(self, host: str) -> bool:
        return host in self._domains or any(host == one or host.endswith(f".{one}") for one in self._parents)

    @asynccontextmanager
    async def open(self, url: str) -> AsyncIterator[Remote]:
        """Yield the medium at a URL while the other server sends it. Raise Refused."""
        target = self.target(url)
        try:
            async with asyncio.timeout(FETCH_SECONDS), self._answer(target) as answer:
                yield Remote(target.name, _length(target, answer), answer.aiter_stream())
        except TimeoutError:
            raise _unfetchable(target, "takes too long") from None
        except httpcore.TimeoutException:
            raise _unfetchable(target, "the server does not answer in time") from None
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise _unfetchable(target, f"cannot be fetched ({_reason(error)})") from None

    @asynccontextmanager
    async def _answer(self, target: Target) -> AsyncIterator[httpcore.Response]:
        """Yield the answer after all redirects."""
        for _ in range(REDIRECTS + 1):
            async with self._request(target) as answer:
                if answer.status not in MOVED:
                    if answer.status != 200:
                        raise _unfetchable(target, f"the server answers with status {answer.status}")
                    yield answer
                    return
                target = self.target(urljoin(target.url, _header(answer, b"location")))
        raise _unfetchable(target, f"more than {REDIRECTS} redirects")

    @asynccontextmanager
    async def _request(self, target: Target) -> AsyncIterator[httpcore.Response]:
        host = target.url.split("/")[2]
        headers = [(b"Host", host), (b"Accept", "*/*"), (b"Accept-Encoding", "identity"), (b"User-Agent", "ma2mba")]
        limits = {"connect": CONNECT_SECONDS, "read": SILENT_SECONDS, "write": SILENT_SECONDS, "pool": CONNECT_SECONDS}
        where = httpcore.URL(
            scheme=target.scheme.encode(), host=target.host.encode(), port=target.port, target=target.path.encode()
        )
        pool = httpcore.AsyncConnectionPool(ssl_context=self._context, network_backend=PublicNetwork())
        async with pool, pool.stream("GET", where, headers=headers, extensions={"timeout": limits}) as answer:
            yield answer


class PublicNetwork(httpcore.AsyncNetworkBackend):
    """Connects to public addresses alone. Knows no proxies, whatever the environment says."""

    def __init__(self) -> None:
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to an address of `host`. Raise Refused if one of its addresses is not public."""
        try:
            async with asyncio.timeout(timeout):
                addresses = await resolve(host, port)
        except TimeoutError:
            raise httpcore.ConnectTimeout(f"{host} is not resolved in time") from None
        except OSError as error:
            raise httpcore.ConnectError(f"{host} is not resolved: {error.strerror or error}") from None
        for address in addresses:
            if problem := address_problem(address):
                raise Refused(f"{host}: its address {address} {problem}. Upload the file", 403, "forbidden_address")
        failed: Exception = httpcore.ConnectError("no address")
        for address in addresses:
            try:
                return await self._backend.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
        raise failed

    async def connect_unix_socket(self, *args: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        raise httpcore.ConnectError("sockets of this machine are not used")

    async def sleep(self, seconds: float) -> None:
        await self._backend.sleep(seconds)


def url_without_login(netloc: str) -> str:
    """Return a URL's host without the user name and the password."""
    return shorten(one_line(netloc.rpartition("@")[2]), 200)


def _host(name: str) -> str:
    """Return a host's name as it is compared: in ASCII and small letters. Raise ValueError if it cannot be one."""
    name = name.lower().rstrip(".")
    return name if name.isascii() else name.encode("idna").decode()


def _header(answer: httpcore.Response, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in answer.headers if key.lower() == name), "")


def _length(target: Target, answer: httpcore.Response) -> int | None:
    """Return the announced length. Raise Refused if the content is compressed: its size is unknown."""
    if _header(answer, b"content-encoding").lower() not in ("", "identity"):
        raise _unfetchable(target, "the server sends compressed content")
    length = _header(answer, b"content-length")
    return int(length) if length.isdecimal() else None


def _unfetchable(target: Target, problem: str) -> Refused:
    return Refused(f"{shorten(target.url, 200)}: {problem}. Check the URL, or upload the file", 400, "unfetchable_url")


def _reason(error: Exception) -> str:
    return shorten(one_line(str(error) or type(error).__name__), 200)
