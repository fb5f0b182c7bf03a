"""Read an upload as it comes, without keeping it: a form with a file, or the file alone."""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from fastapi import Request
from python_multipart.multipart import MultipartParser, parse_options_header

from ma2mba.serving.api.body import body_length, chunks_of
from ma2mba.serving.errors import Refused

FIELD_BYTES, HEADER_BYTES = 1 << 16, 1 << 14
"""Most bytes of a field beside the file, and of the headers of a part."""


class Upload:
    """The file of a request: its name as the client calls it, its bytes as they come, and their number if known."""

    def __init__(self, name: str, chunks: AsyncGenerator[bytes], length: int | None):
        self.name, self.chunks, self.length = name, chunks, length


async def open_upload(request: Request) -> Upload:
    """Return the file that a request sends. Raise Refused if a form has none, or is broken."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data":
        return Upload(request.query_params.get("name", ""), _alone(request), body_length(request))
    if not options.get(b"boundary"):
        raise _broken("its header names no boundary")
    form = _Form(options[b"boundary"], chunks_of(request))
    name = await form.find_file()
    stated = body_length(request)
    return Upload(name, form.file(), None if stated is None else max(0, stated - form.around))


async def _alone(request: Request) -> AsyncGenerator[bytes]:
    async for chunk in chunks_of(request):
        yield chunk


class _Form:
    """Walks through the parts of a form."""

    def __init__(self, boundary: bytes, chunks: AsyncIterator[bytes]):
        self._chunks, self._events = chunks, deque[tuple[str, bytes]]()
        self._ended = self._found = False
        self.around = len(boundary) + 8
        """Bytes of the form around its file, if the file comes last."""

        def note(name: str) -> Any:
            def add(data: bytes = b"", start: int = 0, end: int = 0) -> None:
                self._events.append((name, data[start:end]))

            return add

        names = (
            "part_begin",
            "part_data",
            "part_end",
            "header_field",
            "header_value",
            "header_end",
            "headers_finished",
        )
        callbacks: Any = {f"on_{name}": note(name) for name in (*names, "end")}
        self._parser = MultipartParser(boundary, callbacks)

    async def find_file(self) -> str:
        """Go on to the first part that has a file name, and return this name. To be called once, at the start."""
        field = value = b""
        seen, disposition = 0, b""
        async for name, data in self._all():
            seen = 0 if name == "part_begin" else seen + len(data)
            if name == "part_begin":
                field = value = disposition = b""
            elif name == "header_field":
                field += data
            elif name == "header_value":
                value += data
            elif name == "header_end":
                disposition = value if field.lower() == b"content-disposition" else disposition
                field = value = b""
            elif name == "headers_finished":
                _, options = parse_options_header(disposition)
                if b"filename" in options:
                    self._found = True
                    self.around -= sum(len(data) for kind, data in self._events if kind == "part_data")
                    return options[b"filename"].decode(errors="replace")
            if seen > (FIELD_BYTES if name == "part_data" else HEADER_BYTES + FIELD_BYTES):
                raise _broken("a field is too long")
        raise Refused("the form has no file. Send it as the field `file`", 400, "missing_parameter", "file")

    async def file(self) -> AsyncGenerator[bytes]:
        """Yield the bytes of the file. Raise Refused if the form ends within."""
        async for name, data in self._all():
            if name == "part_data":
                yield data
            elif name == "part_end":
                break
        async for _ in self._all():  # a form that is cut off later is cut off too
            pass
        if not self._ended:
            raise _broken("it ends too early")

    async def _all(self) -> AsyncIterator[tuple[str, bytes]]:
        while True:
            while self._events:
                name, data = self._events.popleft()
                self._ended = self._ended or name == "end"
                yield name, data
            chunk = await anext(self._chunks, None)
            if chunk is None:
                return
            if not self._found:
                self.around += len(chunk)
            try:
                self._parser.write(chunk)
            except ValueError as error:
                raise _broken(str(error)) from None


def _broken(reason: str) -> Refused:
    return Refused(f"the form cannot be read: {reason}. Send it again", 400, "invalid_form")
