"""`ma2mba ingest`: watch a video and keep the state in a file."""

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ma2mba.cli.output import (
    Device,
    Dtype,
    Frames,
    Json,
    ModelFolder,
    Verbose,
    clock,
    err,
    load_chat,
    print_json,
    print_line,
    require_video,
    require_writable,
    watching,
)
from ma2mba.errors import UserError
from ma2mba.files import writing
from ma2mba.terminal import one_line

if TYPE_CHECKING:
    from ma2mba.inference.chat import VideoChat
    from ma2mba.inference.reading import Report
    from ma2mba.inference.state_file import Watched
    from ma2mba.video.frames import FrameReader


def ingest(
    video: Annotated[Path, typer.Argument(help="Video file (or a picture).")],
    model: ModelFolder,
    out_file: Annotated[Path, typer.Option("--out", help="State file to write.")],
    earlier: Annotated[
        Path | None,
        typer.Option("--from", help="State file to continue: append the video to what it watched."),
    ] = None,
    frames: Frames = "1fps",
    keep_partial: Annotated[
        bool, typer.Option("--keep-partial", help="Of a damaged video, keep the state up to the damage.")
    ] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Watch a video and write the state after its last frame, for `ask --state` and `chat --state`."""
    require_video(video)
    require_writable(out_file)
    from ma2mba.video.frames import FrameReader

    with FrameReader() as reader:  # its process starts while this one imports PyTorch
        from ma2mba.inference.chat import parse_frames
        from ma2mba.inference.state_file import state_bytes, verify_state

        parse_frames(frames)
        if earlier:
            verify_state(earlier)
        with err.status(f"loading {model}"):
            began = time.monotonic()
            chat = load_chat(model, device, dtype)
            if earlier:
                chat = chat.load(earlier)
            _require_space(out_file, state_bytes(chat.model))
            loaded = time.monotonic()
        with watching(video) as report:
            seen = _watch(chat, video, frames, reader, report, keep_partial)
        watched = time.monotonic()
    with writing(out_file):
        chat.save(out_file)
    total = sum(one.seconds for one in chat.watched)
    if as_json:
        timings = {"load": round(loaded - began, 3), "watch": round(watched - loaded, 3)}
        facts = {"state": str(out_file), "bytes": out_file.stat().st_size, "video_seconds": total, "timings": timings}
        videos = [one.model_dump() for one in chat.watched]
        print_json(facts | {"partial": seen.partial, "watched": videos})
        return
    print_line(f"{out_file}: {seen.frames:,} frames of {one_line(seen.name)}, {clock(total)} watched in all")
    if seen.partial is not None:
        print_line(f"partial: only {seen.partial:,.0f} s of {one_line(seen.name)} ({one_line(seen.damage)})")


def _watch(
    chat: "VideoChat", video: Path, frames: str, reader: "FrameReader", report: "Report", keep_partial: bool
) -> "Watched":
    """Watch the video. Say of a damaged one how far it is intact, and how to keep that."""
    from ma2mba.video.errors import MediaError

    try:
        return chat.watch(video, frames, reader=reader, report=report, keep_partial=keep_partial)
    except MediaError as error:
        if error.partial is None or keep_partial:
            raise
        remedy = f"{error.remedy}, or keep the state of its first {error.partial:,.0f} s with --keep-partial"
        raise MediaError(error.path, error.reason, remedy, error.partial) from error


def _require_space(out_file: Path, needed: int) -> None:
    """Raise UserError if a state does not fit on the disk: now, not after hours of video."""
    folder = next(folder for folder in out_file.absolute().parents if folder.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"--out {out_file}: needs {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free. Free disk space"
        )
