"""What a client is told when its request is refused: an HTTP status, OpenAI's error object, and a remedy."""

from typing import Any

from ma2mba.errors import UserError

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


def error_object(error: Refused) -> dict[str, Any]:
    """Return the body of OpenAI's errors."""
    kind = TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {
        "error": {"message": str(error), "type": kind, "param": error.param or None, "code": error.code or None},
    }
