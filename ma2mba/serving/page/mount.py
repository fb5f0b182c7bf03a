"""Adds the page to the server."""

from fastapi import FastAPI

from ma2mba.serving.auth import Clients
from ma2mba.serving.contract import Engine, Library
from ma2mba.serving.settings import Settings


def mount_page(app: FastAPI, settings: Settings, engine: Engine, library: Library, clients: Clients) -> FastAPI:
    """Serve the page at `/`, below all routes that `app` has. Return the app to serve."""
    return app
