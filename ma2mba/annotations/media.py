"""The folder of the images and videos that annotations name."""

import os
import re
from pathlib import Path

from ma2mba.annotations.fields import RecordError
from ma2mba.files import OutsideFolder, inside, name_problem

VIDEO_SUFFIX = re.compile(r"\.(3gp|avi|flv|m2ts|m4v|mkv|mov|mp4|mpe?g|mts|ogv|ts|webm|wmv)", re.IGNORECASE)
"""Suffixes that `find` accepts. Files beside a video (.json, .vtt, .jpg) often have the same stem."""


class MediaFolder:
    """The images and videos below `root`. Lists each subfolder at most once."""

    def __init__(self, root: Path):
        self.root = root
        self._videos: dict[Path, dict[str, list[str]]] = {}

    def path(self, name: str) -> Path:
        """Return root/name; the file need not exist. Raise RecordError when the path leaves the folder.

        This looks at the name only. Where a file is opened, `files.inside` looks at symbolic links too.
        """
        if problem := name_problem(name):
            leaves = "folder" in problem or "absolute" in problem
            raise RecordError(
                f"the path {name} does not stay below the media folder" if leaves else f"the path {name!r} {problem}"
            )
        return self.root / name

    def inside(self, name: str) -> str:
        """Return `name` unchanged. Raise RecordError when the path leaves the folder."""
        self.path(name)
        return name

    def find(self, stem: str) -> str:
        """Return `stem` with the suffix of the existing video, or with .mp4 when no video exists.

        Raise RecordError when two videos match, or when the path leaves the folder.
        """
        path = self.path(stem)
        if os.path.normpath(stem) == ".":
            raise RecordError(f"the path {stem} names a folder, not a video")
        found = self._videos_in(path.parent).get(path.name, [])
        if len(found) > 1:
            raise RecordError(f"{' and '.join(sorted(found))} both fit {stem}. Keep one")
        return stem + (Path(found[0]).suffix if found else ".mp4")

    def _videos_in(self, folder: Path) -> dict[str, list[str]]:
        """Return the names of the folder's videos by their stem."""
        if folder not in self._videos:
            listed: dict[str, list[str]] = {}
            try:
                inside(self.root, str(folder.relative_to(self.root)), "the annotations")
                for path in folder.iterdir() if folder.is_dir() else ():
                    if VIDEO_SUFFIX.fullmatch(path.suffix):
                        listed.setdefault(path.stem, []).append(path.name)
            except OSError as error:
                raise RecordError(f"its folder {folder} cannot be listed ({error.strerror})") from error
            except OutsideFolder as error:
                raise RecordError(f"its folder {folder} {error.reason}") from error
            self._videos[folder] = listed
        return self._videos[folder]
