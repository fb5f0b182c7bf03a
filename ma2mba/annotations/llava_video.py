"""LLaVA-Video-178K: a JSON list of {id, conversations, data_source, video}. The mark `<image>` stands for the video."""

from dataclasses import dataclass
from typing import Any

from ma2mba.annotations.conversation import Exchange, conversation, whole_medium
from ma2mba.annotations.fields import need, need_id
from ma2mba.annotations.files import json_list
from ma2mba.annotations.media import MediaFolder
from ma2mba.annotations.records import Record, each


@dataclass(frozen=True)
class LlavaVideoRecord(Record):
    id: str
    conversation: tuple[Exchange, ...]


def parse(value: Any, folder: MediaFolder, where: str) -> LlavaVideoRecord:
    """Return one record. Raise RecordError when it breaks the format."""
    record_id = need_id(value)
    whole_medium(value)
    media = folder.inside(need(value, "video", str))
    return LlavaVideoRecord(where, media, record_id, conversation(value, marked=True))


read = each(json_list, parse)
