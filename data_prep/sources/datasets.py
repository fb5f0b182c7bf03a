"""The published data sets: how a record of each becomes a clip."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from data_prep.clips import Clip
from data_prep.sources.registry import register
from data_prep.sources.turns import caption_turns, choice_turns, conversation_turns, question_turns
from ma2mba.annotations import (
    activitynet_qa,
    llava,
    llava_video,
    nextqa,
    perception_test,
    scenewalk,
    scenewalk_segments,
    webvid,
)
from ma2mba.annotations.files import Files
from ma2mba.annotations.records import BadRecord, Reader, Record

R = TypeVar("R", bound=Record)


def clips(read: Reader[R | BadRecord], clip_of: Callable[[R, Path | None], Clip]) -> Reader[Clip | BadRecord]:
    """Return a reader that makes a clip of each record of `read`: `clip_of(record, path of its medium or None)`."""

    def read_clips(files: Files, root: Path) -> Iterator[Clip | BadRecord]:
        for record in read(files, root):
            if isinstance(record, BadRecord):
                yield record
            else:
                yield clip_of(record, root / record.media if record.media else None)

    return read_clips


def _llava(record: llava.LlavaRecord, path: Path | None) -> Clip:
    turns = conversation_turns(record.conversation)
    return Clip(record.id, path, record.media, record.where, turns, is_image=record.is_image)


def _llava_video(record: llava_video.LlavaVideoRecord, path: Path | None) -> Clip:
    return Clip(record.id, path, record.media, record.where, conversation_turns(record.conversation))


def _webvid(record: webvid.WebVidRecord, path: Path | None) -> Clip:
    return Clip(record.videoid, path, record.media, record.where, caption_turns(record.videoid, record.name))


def _scenewalk(record: scenewalk.SceneWalkRecord, path: Path | None) -> Clip:
    return Clip(record.id, path, record.media, record.where, scenes=record.scenes, total_time=record.total_time)


def _segment(record: scenewalk_segments.SegmentRecord, path: Path | None) -> Clip:
    return Clip(record.id, path, record.media, record.where, scenes=(record.scene,))


def _nextqa_mc(record: nextqa.NextMCRecord, path: Path | None) -> Clip:
    turns = choice_turns(record.question, record.options, record.answer)
    return Clip(f"{record.video}-{record.qid}", path, record.media, record.where, turns)


def _nextqa_oe(record: nextqa.NextOERecord, path: Path | None) -> Clip:
    turns = question_turns(record.question, record.answer)
    return Clip(f"{record.video}-{record.qid}", path, record.media, record.where, turns)


def _activitynet_qa(record: activitynet_qa.ActivityNetRecord, path: Path | None) -> Clip:
    turns = question_turns(record.question, record.answer)
    return Clip(record.question_id, path, record.media, record.where, turns)


def _perception_test(record: perception_test.PerceptionRecord, path: Path | None) -> Clip:
    turns = choice_turns(record.question, record.options, record.answer_id)
    return Clip(f"{record.video_id}-{record.id}", path, record.media, record.where, turns)


register("llava", clips(llava.read, _llava))
register("webvid", clips(webvid.read, _webvid))
register("scenewalk", clips(scenewalk.read, _scenewalk))
register("scenewalk_segments", clips(scenewalk_segments.read, _segment), join="scenes")
register("llava_video", clips(llava_video.read, _llava_video), join="videos")
register("nextqa_mc", clips(nextqa.read_mc, _nextqa_mc), join="videos")
register("nextqa_oe", clips(nextqa.read_oe, _nextqa_oe), join="videos")
register("activitynet_qa", clips(activitynet_qa.read, _activitynet_qa), join="videos")
register("perception_test", clips(perception_test.read, _perception_test), join="videos")
