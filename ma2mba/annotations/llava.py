"""LLaVA-Pretrain: a JSON list of {id, image | video, conversations}. A record with neither medium is text alone."""

from dataclasses import dataclass
from typing import Any

from ma2mba.annotations.conversation import OTHER_MARK, Exchange, conversation, whole_medium
from ma2mba.annotations.fields import RecordError, need, need_id
from ma2mba.annotations.files import json_list
from ma2mba.annotations.media import MediaFolder
from ma2mba.annotations.records import Record, each


@dataclass(frozen=True)
class LlavaRecord(Record):
    id: str
    is_image: bool
    conversation: tuple[Exchange, ...]


def parse(value: Any, folder: MediaFolder, where: str) -> LlavaRecord:
    """Return one record. Raise RecordError when it breaks the format."""
    record_id = need_id(value)
    whole_medium(value)
    keys = [key for key in ("image", "video") if key in value]
    if len(keys) > 1:
        raise RecordError("names both an image and a video")
    exchanges = conversation(value, marked=bool(keys))
    if not keys and exchanges[0].human.startswith(OTHER_MARK):
        raise RecordError(f"names no video, but turn 1 begins with {OTHER_MARK}")
    media = folder.inside(need(value, keys[0], str)) if keys else ""
    return LlavaRecord(where, media, record_id, "image" in keys, exchanges)


read = each(json_list, parse)
