"""Turn the messages of an lmms-eval task into a prompt. Imports no lmms-eval: messages are dicts.

A message is {"role", "content": [{"type": "text", "text"} | {"type": "video" | "image" | "audio", "url", …}]}.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ma2mba.errors import UserError
from ma2mba.evaluation.harness import Medium, Pictures, Prompt, local_file, seconds_window
from ma2mba.video.frames import WHOLE, Window

RANGES = (("start_time", "end_time"), ("video_start", "video_end"))
"""The names that a time range has: in the content of a message, and in the dict of a video."""


def prompt_of(messages: Sequence[Mapping[str, Any]], pictures: Pictures, window: Window = WHOLE) -> Prompt:
    """Return the prompt of one user turn: its media in their order, then its texts, one a line.

    The text of a system message comes first: the model knows one system message, its own. `window`: the seconds of
    videos whose content names none. Raise UserError for what the model cannot be given.
    """
    media: list[Medium] = []
    texts: list[str] = []
    for number, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ("system", "user") or (role == "user" and number < len(messages) - 1):
            raise UserError(
                f"message {number + 1} of {len(messages)} has role {role!r}. Only one user turn is supported"
            )
        parts: Any = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for part in parts or []:
            if part.get("type") == "text":
                texts.append(part["text"])
            else:
                media.append(_medium(part, pictures, window))
    return Prompt(tuple(media), "\n".join(text for text in texts if text))


def visual_parts(visuals: Any) -> list[dict[str, Any]]:
    """Return the contents of a message for what doc_to_visual returns: paths, pictures, and dicts of them."""
    return [{"type": "image" if isinstance(v, Image.Image) else "video", "url": v} for v in visuals or []]


def doc_window(doc: Mapping[str, Any], fields: tuple[str, str]) -> Window:
    """Return the seconds that two fields of a task's document name; WHOLE without the fields."""
    return seconds_window(doc.get(fields[0]), doc.get(fields[1]), f"fields {fields[0]} and {fields[1]}")


def _medium(part: Mapping[str, Any], pictures: Pictures, window: Window) -> Medium:
    kind, url = part.get("type"), part.get("url")
    if kind not in ("video", "image"):
        raise UserError(f"the model has no input of type {kind!r}. It takes text, image and video")
    found = _range(part)
    if isinstance(url, Mapping):
        kind, found = url.get("type", kind), found or _range(url)
        url = next((url[key] for key in ("url", "path", "video", "image") if url.get(key)), None)
    if isinstance(url, Image.Image):
        return Medium(pictures.path(url))
    if not isinstance(url, str | Path):
        raise UserError(f"a medium of type {kind!r} is given as {type(url).__name__}. Give the path of a file")
    path = local_file(str(url))
    if kind != "video":
        return Medium(path)
    return Medium(path, seconds_window(*found, f"{path}") if found else window)


def _range(part: Mapping[str, Any]) -> tuple[Any, Any] | None:
    """Return start and end as a content names them, None if it names neither."""
    for names in RANGES:
        start, end = (part.get(name) for name in names)
        if start is not None or end is not None:
            return start, end
    return None
