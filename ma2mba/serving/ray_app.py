"""Serves a model on several GPUs of a Ray cluster: `serve run ma2mba.serving.ray_app:build model=DIR gpus=N`.

Each replica is a whole server with one GPU, an engine and a folder of its own below `cache`. Ray Serve sends the
requests with the same header `x-session-id` to the same replica. The only file that imports Ray Serve.
"""

import os
from dataclasses import fields, replace
from typing import Any

from fastapi import FastAPI
from pydantic import TypeAdapter, ValidationError

from ma2mba.errors import UserError
from ma2mba.limits import PREFIX
from ma2mba.serving.app import create_app
from ma2mba.serving.engine import ServingEngine
from ma2mba.serving.library import MediaLibrary
from ma2mba.serving.server import CONNECTIONS
from ma2mba.serving.settings import Settings

try:
    from ray import serve
    from ray.serve.config import RequestRouterConfig
except ImportError as error:
    raise UserError('Ray Serve is not installed. Run pip install "ma2mba[serve,ray]"') from error

ROUTER = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"


@serve.ingress()
class Replica:
    """A server on one GPU. Ray numbers the replicas, and a new one takes the number of a lost one."""

    def __init__(self, settings: Settings):
        own = settings.cache / str(serve.get_replica_context().rank.rank)
        self._settings = replace(settings, cache=own)
        os.environ[f"{PREFIX}VIDEO_HOURS"] = repr(settings.max_video_hours)  # for the processes that decode
        self._engine = ServingEngine.open(self._settings)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self._settings, self._engine, MediaLibrary(self._settings, self._engine.forget))


def build(arguments: dict[str, Any]) -> serve.Application:
    """Return the application for `serve run` and `serve.run`.

    `arguments`: `gpus` (replicas with one GPU each, default 1; 0: one replica on CPUs) and fields of `Settings`.
    Raise UserError for others.
    """
    given = dict(arguments)
    gpus, settings = _number(given.pop("gpus", 1)), read_settings(given)
    deployment = serve.deployment(
        Replica,
        name="ma2mba",
        num_replicas=max(gpus, 1),
        ray_actor_options={"num_gpus": min(gpus, 1)},
        max_ongoing_requests=CONNECTIONS,
        graceful_shutdown_timeout_s=settings.grace_seconds + 60,
        request_router_config=RequestRouterConfig(
            request_router_class=ROUTER, request_router_kwargs={"num_fallback_replicas": 0}
        ),
    )
    return deployment.bind(settings)


def read_settings(given: dict[str, Any]) -> Settings:
    """Return settings of named fields, whose values may be texts."""
    known = {field.name for field in fields(Settings)} - {"host", "port", "proxies"}
    for name in given:
        if name not in known:
            raise UserError(f"{name}: unknown. Use gpus, {', '.join(sorted(known))}")
    if "model" not in given:
        raise UserError("model: is missing. Name the model's folder: model=DIR")
    if isinstance(given.get("domains"), str):
        given = given | {"domains": given["domains"].split(",")}
    try:
        return TypeAdapter(Settings).validate_python(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UserError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}. Correct it") from None


def _number(value: Any) -> int:
    if not str(value).isdecimal():
        raise UserError(f"gpus: {value} is not a number. Use 0, 1, 2, ...")
    return int(value)
