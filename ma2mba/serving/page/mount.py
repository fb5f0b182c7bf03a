"""Adds the page to the server."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import gradio as gr
from fastapi import FastAPI

from ma2mba.serving.auth import Clients
from ma2mba.serving.contract import Engine, Library
from ma2mba.serving.page.assets import asset
from ma2mba.serving.page.events import Events
from ma2mba.serving.page.guard import PageGuard
from ma2mba.serving.page.layout import build, theme
from ma2mba.serving.page.routes import page_routes
from ma2mba.serving.page.visitors import Visitors
from ma2mba.serving.settings import Settings


def mount_page(app: FastAPI, settings: Settings, engine: Engine, library: Library, clients: Clients) -> FastAPI:
    """Serve the page at `/`, below all routes that `app` has. Return the app to serve."""
    visitors = Visitors(library, settings.port, settings.keep_minutes * 60)
    inner = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    page = build(settings, Events(engine, library, visitors, settings.max_tokens))
    gr.mount_gradio_app(
        inner,
        page,
        "/",
        footer_links=[],
        run_history=False,
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
        show_error=False,
        max_file_size=1,  # guard.py lets no upload through to Gradio at all
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme(),
        css=asset("page.css"),
        head=f"<script>{asset('page.js')}</script>",
    )
    app.state.parts.when_stopped.append(visitors.stop)
    app.include_router(page_routes(library, visitors, clients))
    inputs = {number: len(event.inputs) for number, event in page.fns.items()}
    app.mount("/", PageGuard(inner, visitors, clients, inputs))
    outer = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Mapping[str, Any] | None]:
        async with outer(app) as state, inner.router.lifespan_context(inner):
            sweep = asyncio.create_task(visitors.sweep())
            try:
                yield state
            finally:
                sweep.cancel()

    app.router.lifespan_context = lifespan  # type: ignore[assignment]
    return app
