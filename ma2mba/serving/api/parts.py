"""What the routes work with: one object of the application, and the client of a request."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from ma2mba.serving.api.body import Budget
from ma2mba.serving.api.readings import Readings
from ma2mba.serving.auth import Clients
from ma2mba.serving.contract import Engine, Library
from ma2mba.serving.errors import Refused
from ma2mba.serving.metrics import Metrics
from ma2mba.serving.settings import Settings


@dataclass
class Parts:
    """Everything that the routes need, and how it is stopped."""

    settings: Settings
    engine: Engine
    library: Library
    clients: Clients
    readings: Readings
    bodies: Budget
    metrics: Metrics
    started: int
    """When the server started, in seconds since 1970."""
    when_stopped: list[Callable[[], None]] = field(default_factory=list)
    """What else is told that the server is being stopped."""
    _stopping: "asyncio.Task[None] | None" = None

    async def stop(self) -> None:
        """Accept nothing new, let answers end, keep the states. A second call waits for the first."""
        self._stopping = self._stopping or asyncio.create_task(self._stop())
        await asyncio.shield(self._stopping)

    async def _stop(self) -> None:
        for tell in self.when_stopped:
            tell()
        await self.readings.close()
        await self.engine.stop(self.settings.grace_seconds)

    def problem(self) -> str:
        """Return why nothing is answered; "" while all is well."""
        return "the server is being stopped. Try again later" if self._stopping else self.engine.problem()

    def require_working(self) -> None:
        """Raise Refused (503) if nothing is answered."""
        if problem := self.problem():
            raise Refused(problem, 503, "unavailable", retry_after=30)


def parts_of(request: Request) -> Parts:
    return request.app.state.parts


def client_of(request: Request) -> str:
    """Return the client that sent a request, before its body is read. Raise Refused (401) if it has no token."""
    return parts_of(request).clients.of_request(request)


Served = Annotated[Parts, Depends(parts_of)]
Client = Annotated[str, Depends(client_of)]
