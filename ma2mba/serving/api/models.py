"""`GET /v1/models`: the one model that is served."""

from typing import Any

from fastapi import APIRouter

from ma2mba.serving.api.parameters import require_model
from ma2mba.serving.api.parts import Client, Parts, Served

router = APIRouter()


@router.get("/v1/models")
async def list_models(parts: Served, client: Client) -> dict[str, Any]:
    """Return the list of models."""
    return {"object": "list", "data": [_model(parts)]}


@router.get("/v1/models/{name:path}")
async def show_model(name: str, parts: Served, client: Client) -> dict[str, Any]:
    """Return the model of a name."""
    require_model(name, parts.settings.model_name)
    return _model(parts)


def _model(parts: Parts) -> dict[str, Any]:
    return {"id": parts.settings.model_name, "object": "model", "created": parts.started, "owned_by": "ma2mba"}
