"""Work for a client that may go away: it is stopped then. And streams of server-sent events."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import AsyncExitStack, suppress
from typing import Any, Generic, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ma2mba.errors import UserError
from ma2mba.serving.contract import Busy
from ma2mba.serving.errors import FAULT, error_object, refusal

log = logging.getLogger(__name__)
KEEP_ALIVE_SECONDS = 10
"""Seconds without an event after which a comment is sent, so that no proxy closes the connection."""
T = TypeVar("T")


class ClientGone(Exception):
    """The client has closed the connection."""


class Following(Generic[T]):
    """Takes the items of a generator one by one, until the client has gone. Close it in any case."""

    def __init__(self, source: AsyncGenerator[T], request: Request, held: AsyncExitStack | None = None):
        """`held` is closed at the end too."""
        self._source, self._held = source, held or AsyncExitStack()
        self._gone = asyncio.create_task(until_gone(request))
        self._next: asyncio.Task[T | None] | None = None

    async def next(self, seconds: float | None = None) -> T | None:
        """Return the next item, None at the end. Raise TimeoutError if it takes longer, ClientGone if nobody listens.

        After a TimeoutError, the same item is waited for again.
        """
        self._next = self._next or asyncio.create_task(_next(self._source))
        await asyncio.wait({self._next, self._gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if self._gone.done():
            raise ClientGone
        if not self._next.done():
            raise TimeoutError
        done, self._next = self._next, None
        return done.result()

    async def close(self) -> None:
        """Stop the generator: what it holds is released."""
        async with self._held:
            for task in (self._gone, self._next):
                if task:
                    task.cancel()
                    await asyncio.wait({task})
                    if not task.cancelled():
                        task.exception()
            await self._source.aclose()


async def _next(source: AsyncIterator[T]) -> T | None:
    return await anext(source, None)


async def until_gone(request: Request) -> None:
    """Return when the client has closed the connection. The request's body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what some work returns. Cancel it, and raise ClientGone, if the client goes away."""

    async def once() -> AsyncGenerator[tuple[T]]:
        yield (await work,)

    following = Following(once(), request)
    try:
        item = await following.next()
        assert item is not None
        return item[0]
    finally:
        await following.close()
        work.close()


class EventStream(Response):
    """Sends the events of a generator as server-sent events. `begun`: the item that was already taken, or None."""

    media_type = "text/event-stream"

    def __init__(self, following: Following[bytes], begun: bytes | None = None):
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._following, self._begun = following, begun

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with suppress(ClientGone, OSError):
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                async for event in self._events():
                    await send({"type": "http.response.body", "body": event, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await self._following.close()

    async def _events(self) -> AsyncIterator[bytes]:
        if self._begun is not None:
            yield self._begun
        while True:
            try:
                item = await self._following.next(KEEP_ALIVE_SECONDS)
            except TimeoutError:
                yield b": waiting\n\n"
            except (UserError, Busy) as error:
                yield event(error_object(refusal(error)))
                return
            except (ClientGone, asyncio.CancelledError):
                raise
            except Exception:
                log.exception("an answer failed")
                yield event(error_object(FAULT))
                return
            else:
                if item is None:
                    return
                yield item


def event(value: Any, name: str = "") -> bytes:
    """Return a server-sent event whose data is JSON."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(value, allow_nan=False)}\n\n".encode()


DONE = b"data: [DONE]\n\n"
