"""What can be wrong with a video or an image."""

from ma2mba.errors import UserError


class MediaError(UserError):
    """Media that cannot be used. `path` names it, `reason` says why in a few words."""

    def __init__(self, path: object, reason: str):
        super().__init__(f"{path}: {reason}; give a whole, readable file")
        self.path, self.reason = str(path), reason

    def __reduce__(self):
        return MediaError, (self.path, self.reason)
