"""`file:` URLs: files below the media root, and no other file."""

import asyncio
import stat
from collections import OrderedDict
from concurrent.futures import Executor
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ma2mba.errors import UserError
from ma2mba.files import inside, open_regular, sha256_file
from ma2mba.serving.contract import Kind, Medium
from ma2mba.serving.errors import Refused
from ma2mba.serving.media_check import Checker
from ma2mba.terminal import one_line
from ma2mba.text import shorten
from ma2mba.video.errors import file_state
from ma2mba.video.length import Length
from ma2mba.video.pictures import IMAGE_SUFFIXES

KNOWN = 4096
"""Files whose hash and length are remembered, until they change."""
LETTERS = 120
"""Letters of a name that are shown."""


class LocalFiles:
    """Opens files below `root`; None: no file."""

    def __init__(self, root: Path | None, checker: Checker, executor: Executor):
        self._root, self._checker, self._executor = root, checker, executor
        self._known: OrderedDict[tuple[str, Kind, tuple[int, ...]], tuple[str, Length]] = OrderedDict()

    async def open(self, url: str, kind: Kind | None) -> tuple[Medium, float]:
        """Return the medium that a `file:` URL names, and its seconds. None: an image or a video, as its suffix says.

        Raise Refused if it is not a file below the root, or cannot be asked about.
        """
        path = local_path(url, self._root)
        name = shown_name(unquote(urlsplit(url).path))
        picture = path.suffix.lower() in IMAGE_SUFFIXES
        if kind == "image" and not picture:
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            raise Refused(f"{name}: its name does not end as a picture's: {suffixes}", 415, "unsupported_media")
        kind = kind or ("image" if picture else "video")
        key = str(path), kind, _state(path, name)
        if key not in self._known:
            content = await asyncio.get_running_loop().run_in_executor(self._executor, sha256_file, path)
            length = await self._checker.check(path, kind, name)
            if _state(path, name) != key[2]:
                raise Refused(f"{name}: was changed while it was read. Try again", 409, "changed")
            self._known[key] = content, length
        self._known.move_to_end(key)
        while len(self._known) > KNOWN:
            self._known.popitem(last=False)
        content, length = self._known[key]
        return Medium(path, content, length.kind, name), length.seconds


def local_path(url: str, root: Path | None) -> Path:
    """Return the path of the file that a `file:` URL names. Raise Refused unless it is a regular file below `root`.

    The URL names an absolute path below the root, or a path that counts from the root. No message tells whether a file
    outside exists.
    """
    shown = shorten(one_line(url), 200)
    if root is None:
        raise Refused(f"{shown}: this server opens no files. Upload the file", 403, "forbidden_file")
    try:
        parts = urlsplit(url)
        name = unquote(parts.path, errors="strict")
    except ValueError as error:
        raise Refused(f"{shown}: not a URL ({error}). Correct it", code="invalid_url") from None
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
        remedy = "Write file:///PATH, with %23 for # and %3F for ?"
        raise Refused(f"{shown}: not the URL of a file. {remedy}", code="invalid_url")
    below, named = _below(root, name)
    outside = Refused(
        f"{shown}: not a file below the server's media root. Name one, or upload it", 403, "forbidden_file"
    )
    try:
        path = inside(root, below, shown)
        if not stat.S_ISREG(path.stat().st_mode):  # before it is opened: opening a device may do something
            raise outside
        with open_regular(path):
            return path
    except FileNotFoundError:
        if not named:
            raise outside from None
        raise Refused(f"{shown}: no such file below the server's media root", 404, "no_such_file") from None
    except (UserError, OSError, ValueError):
        raise outside from None


def _below(root: Path, name: str) -> tuple[str, bool]:
    """Return the name that counts from the root, and whether `name` is below the root, as far as its letters say.

    An absolute path elsewhere is looked for below the root as well.
    """
    for folder in (root.absolute(), root.resolve()):
        prefix = f"{folder}".rstrip("/") + "/"
        if name.startswith(prefix):
            return name.removeprefix(prefix).lstrip("/"), True
    return name.lstrip("/"), not name.startswith("/")


def _state(path: Path, name: str) -> tuple[int, ...]:
    try:
        return file_state(path)
    except UserError:
        raise Refused(f"{name}: no such file below the server's media root", 404, "no_such_file") from None


def shown_name(name: str) -> str:
    """Return a client's name of a medium, as it may be shown: its last part, without control characters."""
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return shorten(one_line(last.encode("utf-8", "replace").decode()), LETTERS) or "video"
