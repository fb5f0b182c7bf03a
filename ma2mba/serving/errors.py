"""What a client is told when its request is refused: an HTTP status, OpenAI's error object, and a remedy."""

from typing import Any

from ma2mba.errors import UserError
from ma2mba.serving.contract import Busy
from ma2mba.terminal import error_text, one_line
from ma2mba.video.errors import MediaError

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refused(UserError):
    """A request that is refused. The message says what is wrong, where, and what to do.

    status         HTTP status
    code           a short name for programs, such as `video_too_long`
    param          the parameter at fault, such as `messages[0].content[1].video_url`
    retry_after    seconds after which the same request may succeed
    """

    def __init__(
        self, message: str, status: int = 400, code: str = "", param: str = "", retry_after: float | None = None
    ):
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after


FAULT = Refused("the server failed: this is a fault of the server. Its log has the reason. Try again", 500, "fault")


def error_object(error: Refused) -> dict[str, Any]:
    """Return the body of OpenAI's errors."""
    kind = TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {
        "error": {
            "message": error_text(str(error)),
            "type": kind,
            "param": one_line(error.param) or None,
            "code": error.code or None,
        },
    }


def refusal(error: UserError | Busy) -> Refused:
    """Return an error of the engine or the library as a client is told it."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, Busy):
        return Refused(str(error), 429, "busy", retry_after=error.retry_after)
    if isinstance(error, MediaError):  # without the path, which is the server's own
        return Refused(f"the video or image cannot be used: {error.reason}. {error.remedy}", 400, "unusable_media")
    return Refused(str(error), 400, "invalid_value")


def headers_of(error: Refused) -> dict[str, str]:
    """Return the HTTP headers that belong to an error."""
    headers = {} if error.retry_after is None else {"Retry-After": str(max(1, round(error.retry_after)))}
    return headers | ({"WWW-Authenticate": "Bearer"} if error.status == 401 else {})
