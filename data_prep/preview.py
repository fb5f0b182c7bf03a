"""What a build would read and write: everything that is known before a video is decoded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.build import split_clips
from data_prep.clips import Clip
from data_prep.reading import Reading, read_sources
from data_prep.recipe import load_recipe, resolve
from data_prep.running import Share
from data_prep.shard import load_finished
from data_prep.workfolder import is_finished
from ma2mba.model.conversation import load_tokenizer
from ma2mba.video.decode import decoder_version


@dataclass(frozen=True)
class Preview:
    """A build before its start.

    `wanted`: the shards to build here, by number; `finished`: those of `wanted` that need no work. `absent`: clips
    whose media file does not exist. `done`: the folder already holds this build, finished.
    """

    reading: Reading
    shards: int
    wanted: Sequence[int]
    finished: list[int]
    absent: list[Clip]
    done: bool


def preview(recipe_path: Path, out: Path, share: Share | None = None, *, online: bool = False) -> Preview:
    """Return what `build` would do. Decode and write nothing. Raise UserError as `build` would before it decodes."""
    recipe, base = load_recipe(recipe_path, online=online), recipe_path.parent
    load_tokenizer((base / recipe.tokenizer).resolve())
    done = is_finished(out, resolve(recipe, base, decoder_version(recipe.decoder), online=online))
    reading = read_sources(recipe, base, online=online)
    shards = len(split_clips(reading.clips, recipe.clips_per_part))
    wanted = (share or Share(0, 1)).shards(shards)
    finished = list(wanted) if done else [shard for shard in wanted if load_finished(out, shard)]
    absent = [clip for clip in reading.clips if clip.media and not clip.media.exists()]
    return Preview(reading, shards, wanted, finished, absent, done)
