"""Turn OpenAI's messages into the turns of a question."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from ma2mba.serving.api.body import validate
from ma2mba.serving.api.parameters import Strict
from ma2mba.serving.contract import Kind, Library, Medium, Turn
from ma2mba.serving.errors import Refused
from ma2mba.text import brief

MEDIA, TEXT_LETTERS = 32, 1 << 20
"""Most videos and images of a conversation, and most letters of its text."""


class Message(Strict):
    role: str
    content: Any = None
    name: str | None = None
    refusal: str | None = None
    annotations: Any = None
    audio: None = None
    function_call: None = None
    tool_calls: list[Any] | None = None
    reasoning: Any = None
    reasoning_content: Any = None


class TextPart(Strict):
    type: Literal["text"]
    text: str
    cache_control: Any = None


class Source(Strict):
    url: str
    detail: Any = None
    uuid: Any = None


Named = Annotated[Source, BeforeValidator(lambda given: {"url": given} if isinstance(given, str) else given)]
"""Some clients write the URL alone."""


class VideoPart(Strict):
    type: Literal["video_url"]
    video_url: Named
    uuid: Any = None
    cache_control: Any = None


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: Named
    uuid: Any = None
    cache_control: Any = None


class File(Strict):
    file_id: str


class FilePart(Strict):
    type: Literal["file"]
    file: File


Part = TextPart | VideoPart | ImagePart | FilePart
PARTS: dict[str, type[Part]] = {"text": TextPart, "video_url": VideoPart, "image_url": ImagePart, "file": FilePart}


class Said:
    """A turn whose media are named, but not yet fetched: (where it stands in the request, URL or id, kind)."""

    def __init__(self, role: Literal["user", "assistant"]):
        self.role, self.texts, self.media = role, list[str](), list[tuple[str, str, Kind]]()


def parse_messages(messages: Sequence[dict[str, Any]]) -> list[Said]:
    """Return the turns of a conversation. Raise Refused if it cannot be asked.

    Messages of one role that follow each other are one turn. The model's own system text is fixed by training, so the
    texts of system messages come before the text of the first user message.
    """
    said: list[Said] = []
    instructions: list[str] = []
    for number, given in enumerate(messages):
        where = f"messages[{number}]"
        message = validate(Message, given, where)
        parts = _parts(message, where)
        if message.role in ("system", "developer"):
            instructions += [_text(part, where, message.role) for part in parts]
            continue
        if message.role not in ("user", "assistant"):
            raise _unsupported(f"{where}.role", message.role, "system, user or assistant")
        role: Literal["user", "assistant"] = "user" if message.role == "user" else "assistant"
        if not said or said[-1].role != role:
            said.append(Said(role))
        for part in parts:
            if isinstance(part, TextPart) or role == "assistant":
                said[-1].texts.append(_text(part, where, message.role))
            else:
                said[-1].media.append(_medium(part, where))
    _require_question(said)
    said[0].texts[:0] = [text for text in instructions if text.strip()]
    return said


async def fetch_turns(said: Sequence[Said], library: Library, owner: str, held: AsyncExitStack) -> tuple[Turn, ...]:
    """Return the turns with their media, which are released when `held` is closed. In a turn, media come first."""
    turns = []
    for one in said:
        media: list[Medium] = []
        for param, url, kind in one.media:
            try:
                medium = await library.fetch(url, kind, owner)
            except Refused as error:
                error.param = error.param or param
                raise
            held.callback(library.release, medium)
            media.append(medium)
        text = "\n".join(one.texts)
        turns.append(Turn(one.role, (*media, text) if text or one.role == "assistant" else (*media,)))
    return tuple(turns)


def _parts(message: Message, where: str) -> list[Part]:
    if message.tool_calls:
        raise _unsupported(f"{where}.tool_calls", message.tool_calls, "text alone")
    if isinstance(message.content, str):
        return [TextPart(type="text", text=message.content)]
    if not isinstance(message.content, list):
        raise _unsupported(f"{where}.content", message.content, "a text or a list of parts")
    return [_part(given, f"{where}.content[{number}]") for number, given in enumerate(message.content)]


def _part(given: Any, where: str) -> Part:
    kind = given.get("type") if isinstance(given, dict) else None
    if not isinstance(kind, str) or kind not in PARTS:
        raise _unsupported(f"{where}.type", kind, "text, video_url, image_url or file")
    return validate(PARTS[kind], given, where)


def _text(part: Part, where: str, role: str) -> str:
    if not isinstance(part, TextPart):
        raise _unsupported(f"{where}.content", part.type, f"text alone in a message of role {role}")
    return part.text


def _medium(part: Part, where: str) -> tuple[str, str, Kind]:
    if isinstance(part, VideoPart):
        return f"{where}.video_url", part.video_url.url, "video"
    if isinstance(part, ImagePart):
        return f"{where}.image_url", part.image_url.url, "image"
    assert isinstance(part, FilePart)
    return f"{where}.file", part.file.file_id, "video"


def _require_question(said: Sequence[Said]) -> None:
    if not said or said[0].role != "user":
        raise Refused("messages: begin with a user's message", 400, "invalid_value", "messages")
    if said[-1].role != "user":
        raise Refused("messages: the last message must be the user's. Ask a question", 400, "invalid_value", "messages")
    if not any(text.strip() for text in said[-1].texts):
        raise Refused("messages: the last message has no question. Add a text", 400, "invalid_value", "messages")
    if sum(len(one.media) for one in said) > MEDIA:
        raise Refused(f"messages: name at most {MEDIA} videos and images", 400, "too_many_media", "messages")
    if sum(len(text) for one in said for text in one.texts) > TEXT_LETTERS:
        raise Refused(f"messages: shorten the text to {TEXT_LETTERS:,} letters", 413, "text_too_long", "messages")


def _unsupported(param: str, value: Any, remedy: str) -> Refused:
    return Refused(f"{param}: {brief(value)} is not supported. Use {remedy}", 400, "invalid_value", param)
