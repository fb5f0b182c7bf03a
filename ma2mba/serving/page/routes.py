"""The page's own routes: signing in, uploading a video, seeing it again, ending the session."""

from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response

from ma2mba.serving.auth import Clients
from ma2mba.serving.contract import Library
from ma2mba.serving.errors import Refused
from ma2mba.serving.page.assets import login_page
from ma2mba.serving.page.guard import POLICY, check_origin, set_cookie
from ma2mba.serving.page.media_type import media_type
from ma2mba.serving.page.visitors import Visitors

FORM_BYTES = 4096
LONGEST_NAME = 200
MEDIA_HEADERS = {"Content-Security-Policy": "sandbox; default-src 'none'", "Cache-Control": "private"}
FORM_HEADERS = {"Content-Security-Policy": POLICY}


def page_routes(library: Library, visitors: Visitors, clients: Clients) -> APIRouter:
    """Return the routes below /page."""
    router = APIRouter(prefix="/page", include_in_schema=False)

    @router.post("/login")
    async def login(request: Request) -> Response:
        """Start a session for the client whose token the form has."""
        check_origin(request)
        client = clients.of_token(await _token(request))
        if client is None:
            return HTMLResponse(
                login_page("This token is unknown. Ask the server's operator for one."), 401, FORM_HEADERS
            )
        response = RedirectResponse("../", 303)
        set_cookie(response, request, visitors.cookie, visitors.start(client, request.cookies))
        return response

    @router.post("/end")
    async def end(request: Request) -> Response:
        """End the session: its videos and conversations are deleted."""
        check_origin(request)
        if visitor := visitors.find(request.cookies):
            await visitors.end(visitor)
        response = RedirectResponse("../", 303)
        response.delete_cookie(visitors.cookie)
        return response

    @router.post("/videos")
    async def upload(request: Request, name: str = "video") -> Response:
        """Store the body of the request as a video of this visitor."""
        check_origin(request)
        visitor = visitors.expect(request.cookies)
        length = request.headers.get("content-length", "")
        size = int(length) if length.isascii() and length.isdigit() else None
        stored = await library.store(request.stream(), name[:LONGEST_NAME], visitor.owner, size)
        return JSONResponse({"id": stored.id})

    @router.get("/videos/{id}")
    async def media(request: Request, id: str) -> Response:
        """Show a video to the visitor who uploaded it."""
        stored = library.find(id, visitors.expect(request.cookies).owner)
        return FileResponse(stored.medium.path, media_type=media_type(stored.medium.path), headers=MEDIA_HEADERS)

    return router


async def _token(request: Request) -> str:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > FORM_BYTES:
            raise Refused("this is longer than any token. Enter the token alone", 413, "too_long")
    return parse_qs(body.decode("ascii", "replace")).get("token", [""])[0].strip()
