"""What a build would read and write: everything that is known before a video is decoded."""

from dataclasses import dataclass
from pathlib import Path

from data_prep.build import split_clips
from data_prep.clips import Clip
from data_prep.parts import samples_per_shard
from data_prep.reading import Reading, read_sources
from data_prep.recipe import load_recipe, resolve
from data_prep.running import Share
from data_prep.shard import load_finished
from data_prep.workfolder import is_finished, samples_per_shard_in
from ma2mba.model.conversation import load_tokenizer
from ma2mba.video.decode import decoder_version


@dataclass(frozen=True)
class Preview:
    """A build before its start.

    `to_build`: the number of the `shards` that this share must still build. `absent`: clips whose media file does not
    exist. `done`: the folder already holds this build, finished.
    """

    reading: Reading
    shards: int
    to_build: int
    absent: list[Clip]
    done: bool


def preview(recipe_path: Path, out: Path, share: Share | None = None, *, online: bool = False) -> Preview:
    """Return what `build` would do. Decode and write nothing. Raise UserError as `build` would before it decodes."""
    recipe, base = load_recipe(recipe_path, online=online), recipe_path.parent
    load_tokenizer((base / recipe.tokenizer).resolve())
    resolved = resolve(recipe, base, decoder_version(recipe.decoder), online=online)
    size = resolved["clips_per_part"] = recipe.clips_per_part or samples_per_shard_in(out)
    done = is_finished(out, resolved)
    reading = read_sources(recipe, base, online=online)
    shards = len(split_clips(reading.clips, size or samples_per_shard(len(reading.clips))))
    wanted = (share or Share(0, 1)).shards(shards)
    to_build = 0 if done else sum(load_finished(out, shard) is None for shard in wanted)
    absent = [clip for clip in reading.clips if clip.media and not clip.media.exists()]
    return Preview(reading, shards, to_build, absent, done)
