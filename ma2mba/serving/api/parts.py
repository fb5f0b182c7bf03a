"""What the routes work with: one object of the application, and the client of a request."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from ma2mba.serving.api.body import Budget
from ma2mba.serving.api.readings import Readings
from ma2mba.serving.auth import Clients
from ma2mba.serving.contract import Engine, Library
from ma2mba.serving.errors import Refused
from ma2mba.serving.metrics import Metrics
from ma2mba.serving.settings import Settings


@dataclass(frozen=True)
class Parts:
    settings: Settings
    engine: Engine
    library: Library
    clients: Clients
    readings: Readings
    bodies: Budget
    metrics: Metrics
    started: int
    """When the server started, in seconds since 1970."""

    def problem(self) -> str:
        """Return why nothing is answered; "" while all is well."""
        return self.engine.problem()

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
