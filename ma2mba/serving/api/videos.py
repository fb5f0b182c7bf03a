"""`/v1/videos`: upload a video or an image, or name its URL; follow its reading; ask about its id; delete it."""

from collections.abc import AsyncGenerator
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from ma2mba.serving.api.body import expected_bytes, read_json, validate
from ma2mba.serving.api.multipart import open_upload
from ma2mba.serving.api.parameters import Strict
from ma2mba.serving.api.parts import Client, Parts, Served
from ma2mba.serving.api.stream import EventStream, Following, event, unless_gone
from ma2mba.serving.contract import Progress, Stored

router = APIRouter()
STATUS = {"queued": "queued", "reading": "in_progress", "ready": "completed", "failed": "failed"}
"""The state of a reading -> the status of OpenAI's video objects."""


class Link(Strict):
    url: str


@router.post("/v1/videos")
async def add_video(request: Request, response: Response, parts: Served, client: Client) -> dict[str, Any]:
    """Store an upload, or what a URL names, and begin to read it. The header `Location` tells a proxy the id."""
    parts.require_working()
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json":
        with parts.bodies.hold(expected_bytes(request)):
            link = validate(Link, await read_json(request))
            stored = await unless_gone(request, parts.library.keep(link.url, client))
    else:
        upload = await open_upload(request)
        stored = await parts.library.store(upload.chunks, upload.name, client, upload.length)
    response.headers["Location"] = f"/v1/videos/{stored.id}"
    return _video(stored, parts.readings.progress(stored, client))


@router.get("/v1/videos")
async def list_videos(parts: Served, client: Client) -> dict[str, Any]:
    """Return the client's media, the newest first."""
    newest = sorted(parts.library.list(client), key=lambda stored: stored.created, reverse=True)
    videos = [_video(stored, parts.readings.progress(stored, client)) for stored in newest]
    ids = [video["id"] for video in videos]
    first, last = (ids[0], ids[-1]) if ids else (None, None)
    return {"object": "list", "data": videos, "first_id": first, "last_id": last, "has_more": False}


@router.get("/v1/videos/{id}")
async def show_video(id: str, parts: Served, client: Client) -> dict[str, Any]:
    """Return a medium, and how far it was read."""
    stored = parts.library.find(id, client)
    return _video(stored, parts.readings.progress(stored, client))


@router.get("/v1/videos/{id}/events")
async def follow_video(id: str, request: Request, parts: Served, client: Client) -> Response:
    """Stream how far a medium was read, until it is read or has failed."""
    return EventStream(Following(_events(parts, parts.library.find(id, client), client), request))


@router.delete("/v1/videos/{id}")
async def delete_video(id: str, parts: Served, client: Client) -> dict[str, Any]:
    """Delete a medium, and the states of its video."""
    parts.library.find(id, client)
    await parts.readings.drop(id)
    await parts.library.delete(id, client)
    return {"id": id, "object": "video.deleted", "deleted": True}


async def _events(parts: Parts, stored: Stored, client: str) -> AsyncGenerator[bytes]:
    async for progress in parts.readings.events(stored, client):
        yield event(_video(stored, progress), "progress")


def _video(stored: Stored, progress: Progress) -> dict[str, Any]:
    """Return the object of a medium: OpenAI's fields of a video, and what is known of its reading."""
    error = None
    if progress.error:
        error = {"code": "unusable_media", "message": progress.error.replace(str(stored.medium.path), "the file")}
    share = progress.seconds / progress.duration if progress.duration else 0
    return {
        "id": stored.id,
        "object": "video",
        "kind": stored.medium.kind,
        "name": stored.medium.name,
        "bytes": stored.bytes,
        "duration": round(stored.duration, 3),
        "created_at": int(stored.created),
        "expires_at": int(stored.expires),
        "status": STATUS[progress.state],
        "progress": 100 if progress.state == "ready" else min(99, int(100 * share)),
        "reading": {key: value for key, value in asdict(progress).items() if key not in ("state", "error")},
        "error": error,
    }
