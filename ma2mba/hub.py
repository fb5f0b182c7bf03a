"""The door to the Hugging Face hub for models: names, revisions, and files in the hub's cache.

Only files that the caller names are downloaded. No code of a repository is downloaded or run. Without a network, and
with HF_HUB_OFFLINE=1, the cache answers.
"""

import os
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from ma2mba.errors import UserError
from ma2mba.text import shorten

_NAME = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?", re.ASCII)
_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class HubName:
    """A model on the hub. `revision` is a branch, a tag or a commit; None means the default branch."""

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name

    @property
    def is_pinned(self) -> bool:
        """Return True if the revision is a commit."""
        return bool(self.revision and _COMMIT.fullmatch(self.revision))

    def file(self, name: str) -> Path:
        """Return the path of a file in the hub's cache, downloaded if necessary.

        Raise UserError if the hub has no such file, or if it cannot be reached and the cache has no such file.
        """
        try:
            return self._download(name)
        except Exception as error:  # the hub's client raises errors of many libraries
            raise UserError(
                f"{self}: no such folder, and {name} of the hub's repository with this name cannot be downloaded "
                f"({_reason(error)}). Correct the path or the name. docs/training.md shows how to import weights "
                "(Published weights)"
            ) from error

    def find(self, name: str) -> Path | None:
        """Return the path of a file in the hub's cache, downloaded if necessary; None if the repository has none."""
        from huggingface_hub.errors import EntryNotFoundError

        try:
            return self._download(name)
        except EntryNotFoundError:
            return None
        except Exception as error:
            raise UserError(f"{self}: {name} cannot be downloaded ({_reason(error)}). Try again") from error

    def _download(self, name: str) -> Path:
        from huggingface_hub import hf_hub_download, logging

        logging.set_verbosity_error()  # it logs every retry
        return Path(hf_hub_download(self.name, name, revision=self.revision, local_files_only=_unreachable()))

    def pinned(self) -> "HubName":
        """Return the same model at the commit that the revision names now."""
        return self if self.is_pinned else HubName(self.name, self.file("config.json").parent.name)


def hub_name(text: str) -> HubName | None:
    """Return the hub name that `text` is, as owner/name or owner/name@revision. None for a path.

    A folder that exists is a path, whatever its name is.
    """
    match = _NAME.fullmatch(text)
    if not match or ".." in text or os.path.lexists(text):
        return None
    return HubName(match["name"], match["revision"])


def fetch(source: str, files: Callable[[HubName], object] = lambda _: None) -> Path:
    """Return the folder that `source` names: itself if it is a path, or a snapshot in the hub's cache with config.json.

    `files` downloads more files of the repository, at the same commit.
    """
    name = hub_name(source)
    if name is None:
        return Path(source)
    folder = name.file("config.json").parent
    files(HubName(name.name, folder.name))
    return folder


@cache
def _unreachable() -> bool:
    """Return True if the hub's host has no address: the client would retry for 24 s, for every file."""
    from huggingface_hub import constants

    if getproxies():
        return False
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except OSError:
        return True
    return False


def _reason(error: Exception) -> str:
    from huggingface_hub.errors import LocalEntryNotFoundError

    if isinstance(error, LocalEntryNotFoundError):
        return "the hub cannot be reached, and its cache on this machine has no such file"
    return shorten(" ".join(str(error).split()) or type(error).__name__, 300)
