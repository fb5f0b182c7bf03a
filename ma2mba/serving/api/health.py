"""`/health` for a balancer, and `/metrics` for Prometheus."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from ma2mba.serving.api.parts import Client, Served

router = APIRouter()


@router.api_route("/health", methods=["GET", "HEAD"])
async def health(parts: Served) -> JSONResponse:
    """Say whether questions are answered: status 200, or 503 with the reason. Needs no token."""
    problem = parts.problem()
    body = {"status": "failed", "problem": problem} if problem else {"status": "ok"}
    return JSONResponse(body, 503 if problem else 200, {"Cache-Control": "no-store"})


@router.get("/metrics")
async def metrics(parts: Served, client: Client) -> Response:
    """Return the server's numbers in Prometheus' text format."""
    return Response(parts.metrics.text(), media_type=CONTENT_TYPE_LATEST)
