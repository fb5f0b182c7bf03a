"""Read JSON bodies: bounded in size and time, and in the memory that all of them take together."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from ma2mba.serving.contract import Busy
from ma2mba.serving.errors import Refused
from ma2mba.strings import fits_utf8
from ma2mba.text import brief, parse_json

MB = 10**6
BODY_BYTES = 64 * MB
"""Bytes of the largest JSON body: a `data:` URL of 48 MB."""
BODIES_BYTES = 8 * BODY_BYTES
"""Bytes of all JSON bodies that are held at once."""
SMALL = MB
"""Bytes of a body that is parsed at once, without a thread."""
IDLE_SECONDS = 60
"""Seconds without a byte after which a body is given up."""
M = TypeVar("M", bound=BaseModel)


class Budget:
    """The bytes of bodies that are held at once.

    A client gets at most half of the bytes that the others leave: one that announces large bodies and sends them slowly
    does not keep the others out.
    """

    def __init__(self, most: int = BODIES_BYTES):
        self._most, self._held = most, Counter[str]()

    @contextmanager
    def hold(self, count: int, client: str) -> Iterator[None]:
        """Count a client's bytes while they are held. Raise Busy if they are too many."""
        own = self._held[client]
        others = self._held.total() - own
        if own + count > (self._most - others) // 2:
            raise Busy("too many large requests at once. Try again, or upload media with POST /v1/videos", 5)
        self._held[client] += count
        try:
            yield
        finally:
            self._held[client] -= count
            if not self._held[client]:
                del self._held[client]


def body_length(request: Request) -> int | None:
    """Return the length that a request states, None if it states none."""
    text = request.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() else None


def expected_bytes(request: Request) -> int:
    """Return the most bytes that a JSON body will have. Raise Refused (413) if it states too many."""
    length = body_length(request)
    if length is not None and length > BODY_BYTES:
        raise _too_large()
    return BODY_BYTES if length is None else length


async def read_json(request: Request) -> dict[str, Any]:
    """Return the object that a request sends. Raise Refused: 408, 413, 415, or 400 if it is not a JSON object."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused("the body must be JSON. Send `Content-Type: application/json`", 415, "unsupported_media_type")
    content = bytearray()
    async for piece in chunks_of(request):
        content += piece
        if len(content) > BODY_BYTES:
            raise _too_large()
    text = bytes(content)
    try:
        value = _parse(text) if len(text) < SMALL else await asyncio.to_thread(_parse, text)
    except ValueError as error:
        raise Refused(f"the body is not JSON ({brief(str(error))}). Correct it", 400, "invalid_json") from None
    if not isinstance(value, dict):
        raise Refused("the body is not a JSON object. Send one", 400, "invalid_json")
    return value


async def chunks_of(request: Request) -> AsyncIterator[bytes]:
    """Yield a request's body as it comes. Raise Refused (408) if nothing comes for a while, 415 if it is compressed."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused("compressed bodies are not read. Send the body as it is", 415, "unsupported_encoding")
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                piece = await anext(stream, None)
        except TimeoutError:
            raise Refused(f"no byte came for {IDLE_SECONDS} s. Send the request again", 408, "timeout") from None
        if piece is None:
            return
        if piece:
            yield piece


def validate(model: type[M], value: Any, where: str = "") -> M:
    """Return an object of a model. Raise Refused that names the first wrong key below `where`."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        param = _path(where, first["loc"])
        if first["type"] == "missing":
            raise Refused(f"{param}: is missing. Give it", 400, "missing_parameter", param) from None
        if first["type"] == "extra_forbidden":
            raise Refused(f"{param}: is not known here. Leave it out", 400, "unknown_parameter", param) from None
        said = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
        said = said if said.startswith("should") else f"is wrong ({said})"
        raise Refused(f"{param}: {said}, not {brief(first['input'])}", 400, "invalid_value", param) from None


def _parse(text: bytes) -> Any:
    """Return the value of a JSON text. Raise ValueError as `parse_json` does, and for half of a surrogate pair."""
    value = parse_json(text)
    if b"\\u" in text and not fits_utf8(json.dumps(value, ensure_ascii=False)):
        raise ValueError("it holds half of a surrogate pair")
    return value


def _path(where: str, steps: tuple[int | str, ...]) -> str:
    for step in steps:
        where += f"[{step}]" if isinstance(step, int) else f".{step}" if where else step
    return where


def _too_large() -> Refused:
    return Refused(
        f"the body is larger than {BODY_BYTES // MB} MB. Upload media with POST /v1/videos, and name their ids",
        413,
        "body_too_large",
    )
