"""The registry of annotation formats: one registration holds everything that depends on a format."""

import difflib
from dataclasses import dataclass
from typing import Literal

from data_prep.clips import Clip
from ma2mba.annotations.records import BadRecord, Reader

Join = Literal["nothing", "scenes", "videos"]


@dataclass(frozen=True)
class Format:
    """An annotation format.

    `name` is the value of `format` in a recipe. `read` yields the clips of annotation files. `join` says which clips
    become one: "nothing": every clip is a sample; "scenes": clips with the same id are scenes of one video, and a bad
    record rejects its whole video; "videos": the conversations about one video, from all formats with "videos".
    """

    name: str
    read: Reader[Clip | BadRecord]
    join: Join = "nothing"


_FORMATS: dict[str, Format] = {}


def register(name: str, read: Reader[Clip | BadRecord], *, join: Join = "nothing") -> None:
    """Make a format known to recipes under `name`. Raise ValueError when the name is taken."""
    if name in _FORMATS:
        raise ValueError(f"a format named {name} is already registered; choose another name")
    _FORMATS[name] = Format(name, read, join)


def find_format(name: str) -> Format:
    """Return a registered format. Raise ValueError that lists the known ones when there is none of this name."""
    if name in _FORMATS:
        return _FORMATS[name]
    near = difflib.get_close_matches(name, _FORMATS, 1)
    meant = f" Did you mean {near[0]}?" if near else ""
    known = ", ".join(format_names())
    raise ValueError(f"{name} is not a known format.{meant} Known formats: {known}. Register your own format first.")


def format_names() -> list[str]:
    """Return the names of all registered formats, sorted."""
    return sorted(_FORMATS)
