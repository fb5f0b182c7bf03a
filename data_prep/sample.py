"""Build a sample from a clip: decode and resize its frames, and encode its conversation as tokens."""

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from data_prep.clips import Clip
from data_prep.recipe import Recipe
from data_prep.scene_times import Footage, contradiction
from data_prep.spool import Slot, Spool, SpooledFrames
from ma2mba.annotations.scenewalk import Scene
from ma2mba.files import OutsideFolder, inside, sha256_file
from ma2mba.model.conversation import Encoded, encode_conversation, encode_scenes
from ma2mba.model.plain_text import UnencodableText
from ma2mba.shards.format import IndexRow
from ma2mba.shards.writer import PayloadFrame, payload_hash
from ma2mba.video.animation import is_animated_webp
from ma2mba.video.decode import decode_video, decoder_version
from ma2mba.video.errors import MediaError
from ma2mba.video.jpeg import to_jpeg
from ma2mba.video.pictures import clip_view, read_image


@dataclass(frozen=True)
class Watched:
    """The sampled frames of an image or a video.

    `indices` holds the number of each frame in the file, which has `total` frames. `duration` is in seconds.
    `damage` describes what is damaged, `ignored` what the file says of its pictures and is not applied; both are "" if
    there is nothing.
    """

    frames: SpooledFrames
    indices: list[int]
    total: int
    duration: float
    damage: str
    ignored: str = ""


@dataclass(frozen=True)
class Built:
    """A sample to be written. `silent_scenes` is the number of scenes left out because no sampled frame shows them."""

    row: IndexRow
    frames: Sequence[PayloadFrame]
    silent_scenes: int


def watch(
    clip: Clip, recipe: Recipe, spool: Spool, beat: Callable[[], None], on_frame: Callable[[], None] = lambda: None
) -> Watched:
    """Sample the frames of the clip's medium into `spool`. Raise MediaError.

    A picture that is shown at several times is encoded once. Call `beat` at each packet, `on_frame` at each picture.
    """

    def use(picture: np.ndarray) -> Slot:
        beat()
        slot = spool.put(to_jpeg(clip_view(picture, recipe.image_size), recipe.jpeg_quality))
        on_frame()
        return slot

    if clip.media is None:
        return Watched(SpooledFrames(spool, []), [], 0, 0.0, "")
    if clip.is_image:
        return Watched(SpooledFrames(spool, [(0.0, 0.0, use(read_image(clip.media)))]), [0], 1, 0.0, "")
    keep = recipe.on_damage == "keep"
    decoded = decode_video(clip.media, use, fps=recipe.fps, keep_damaged=keep, decoder=recipe.decoder, beat=beat)
    frames = [(sample.t, sample.pts, sample.value) for sample in decoded.samples]
    indices = [sample.index for sample in decoded.samples]
    return Watched(
        SpooledFrames(spool, frames), indices, decoded.total, decoded.duration, decoded.damage, decoded.ignored
    )


def build_sample(
    clip: Clip,
    recipe: Recipe,
    recipe_hash: str,
    tokenizer: Tokenizer,
    spool: Spool,
    beat: Callable[[], None],
    on_frame: Callable[[], None] = lambda: None,
) -> Built:
    """Return a clip's sample, whose frames are in `spool`. The writer sets its `file` and `first_row_group`.

    Call `beat` often, and `on_frame` after each picture that is decoded and encoded.
    Raise MediaError when the medium cannot be used, MemoryError when decoding reaches the process's memory limit.
    """
    spool.clear()
    clip = replace(clip, media=_resolved(clip))
    watched = watch(clip, recipe, spool, beat, on_frame)
    try:
        encoded, silent = _encode(clip, watched, tokenizer)
    except UnencodableText as error:
        raise MediaError(clip.media, f"its text {error}") from error
    size, digest = _identity(clip.media, beat)
    by_pillow = clip.is_image or (clip.media is not None and is_animated_webp(clip.media))
    row = IndexRow(
        sample_id=clip.sample_id,
        token_ids=np.array(encoded.token_ids, np.int32),
        supervised=np.array(encoded.supervised, bool),
        frame_positions=np.array(encoded.frame_positions, np.int32),
        timestamps=np.array(watched.frames.times, np.float64),
        file="",
        first_row_group=0,
        frames=len(watched.frames),
        duration=watched.duration,
        dataset=clip.dataset,
        source=clip.name,
        source_bytes=size,
        source_sha256=digest,
        payload_xxh3=payload_hash(_each(watched.frames, beat)),
        decoder="pillow" if by_pillow else recipe.decoder if clip.media else "",
        decoder_version="" if by_pillow or not clip.media else decoder_version(recipe.decoder),
        recipe_hash=recipe_hash,
        status="partial" if watched.damage else "ok",
        reason="; ".join(text for text in (watched.damage, watched.ignored) if text),
    )
    return Built(row, watched.frames, silent)


def _resolved(clip: Clip) -> Path | None:
    """Return the path of a clip's medium. Raise MediaError when it leads out of the media folder, by links too."""
    if clip.media is None or clip.folder is None:
        return clip.media
    try:
        return inside(clip.folder, os.path.relpath(clip.media, clip.folder), clip.where)
    except OutsideFolder as error:
        raise MediaError(clip.media, f"its path {error.reason}") from error


def _each(frames: Sequence[PayloadFrame], beat: Callable[[], None]) -> Iterator[bytes]:
    for frame in frames:
        beat()
        yield frame.data


def _identity(media: Path | None, beat: Callable[[], None]) -> tuple[int, str]:
    """Return a file's size in bytes and SHA-256, (0, "") for None. Raise MediaError when reading fails."""
    if media is None:
        return 0, ""
    try:
        return media.stat().st_size, sha256_file(media, beat)
    except OSError as error:
        raise MediaError(media, f"cannot be read to its end ({error.strerror})") from error


def _encode(clip: Clip, watched: Watched, tokenizer: Tokenizer) -> tuple[Encoded, int]:
    if not clip.scenes:
        return encode_conversation(tokenizer, clip.turns, len(watched.frames)), 0
    video = Footage(watched.total, watched.duration)
    if problem := contradiction(clip.scenes, None if watched.damage else clip.total_time, video):
        raise MediaError(clip.media, problem)
    scenes = frames_of_scenes(clip.scenes, watched.indices)
    shown = [(count, scene.caption) for count, scene in zip(scenes, clip.scenes, strict=True) if count]
    return encode_scenes(tokenizer, shown), len(clip.scenes) - len(shown)


def frames_of_scenes(scenes: tuple[Scene, ...], indices: list[int]) -> list[int]:
    """Return the number of sampled frames of each scene.

    A frame belongs to the last scene that starts at or before it. A frame before all scenes belongs to the first.
    """
    starts, counts = [scene.start_frame for scene in scenes], [0] * len(scenes)
    for index in indices:
        counts[max(0, bisect_right(starts, index) - 1)] += 1
    return counts
