"""Why the server refuses what a client sends: each error has its HTTP status."""

from ma2mba.errors import UserError


class Refused(UserError):
    """The server refuses a request. `status` is the HTTP status, `code` names the reason for programs."""

    status = 400
    code = "invalid_media"


class Forbidden(Refused):
    """The server is not allowed to open what the client names."""

    status, code = 403, "forbidden_media"


class NotFound(Refused):
    """There is no such upload or file, or it is not this client's."""

    status, code = 404, "not_found"


class TooLarge(Refused):
    """A medium has more bytes or lasts longer than the server accepts, or the client's quota is used up."""

    status, code = 413, "too_large"


class Unfetchable(Refused):
    """A remote server did not send the medium."""

    status, code = 400, "unfetchable_media"


class DiskFull(Refused):
    """The server has no space for uploads."""

    status, code = 503, "no_space"
