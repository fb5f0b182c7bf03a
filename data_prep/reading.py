"""Read the annotations of a recipe: all clips, with those about the same video joined, and all bad records."""

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from data_prep.clips import Clip, Reject, join_scenes, join_videos
from data_prep.recipe import Recipe, Source
from data_prep.sources import find_format
from ma2mba.annotations.records import BadRecord
from ma2mba.errors import UserError
from ma2mba.exclude import check_known, read_ids
from ma2mba.files import fits_utf8

MOST_BAD = 100_000
"""Malformed records of a source that are listed even if nine of ten records are malformed."""
LONGEST_NAME = 4096
"""Characters of the longest id and the longest path. Every frame of a sample stores its id."""


@dataclass
class Reading:
    """The clips and rejects of a recipe, and the numbers of records, of clips before joining, and of clips left out.

    `by_dataset` holds the same counts for each data set.
    """

    clips: list[Clip] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    records: int = 0
    ungrouped: int = 0
    excluded: int = 0
    by_dataset: dict[str, dict[str, int]] = field(default_factory=dict)


def read_sources(recipe: Recipe, base: Path, *, online: bool = False) -> Reading:
    """Read all annotations of a recipe whose folder is `base`. Raise UserError for a file of another format.

    Only with `online` may a source be a data set on the hub.
    """
    reading = Reading()
    found: dict[str, list[Clip]] = {"nothing": [], "scenes": [], "videos": []}
    incomplete = set[str]()
    records, before = Counter[str](), Counter[str]()
    for source in recipe.sources:
        form = find_format(source.format)
        media, bad = base / source.media, 0
        for number, item in enumerate(form.read(source.files(base, online), media), 1):
            records[source.name] += 1
            clip = encodable(item)
            if isinstance(clip, Reject):
                reading.rejects.append(clip)
                bad += 1
                if bad > MOST_BAD and bad > number * 9 // 10:
                    raise _not_of_this_format(source, number, bad, clip)
                incomplete |= {clip.sample_id} if form.join == "scenes" else set()
            else:
                before[source.name] += 1
                found[form.join].append(replace(clip, dataset=source.name, folder=media))
    reading.records, reading.ungrouped = records.total(), before.total()
    joined = [*found["nothing"], *join_scenes(found["scenes"], incomplete), *join_videos(found["videos"])]
    reading.rejects += [clip for clip in joined if isinstance(clip, Reject)]
    _resolve_repeated_ids(reading, [clip for clip in joined if isinstance(clip, Clip)])
    _exclude(reading, read_ids(recipe.exclude, base))
    after = Counter(clip.dataset for clip in reading.clips)
    reading.by_dataset = {
        name: {"records": records[name], "conversations": before[name], "grouped": after[name]}
        for name in dict.fromkeys(source.name for source in recipe.sources)
    }
    return reading


def _not_of_this_format(source: Source, records: int, bad: int, last: Reject) -> UserError:
    return UserError(
        f"{last.where}: {bad:,} of {records:,} records of the source {source.name} are malformed, this one too "
        f"({last.reason}). Check its format, {source.format}"
    )


def _resolve_repeated_ids(reading: Reading, clips: list[Clip]) -> None:
    """Keep the first clip of each id in a data set. Prefix an id that another data set has with the data set's name."""
    first: dict[str, Clip] = {}
    for clip in clips:
        same = first.get(clip.sample_id)
        if same and same.dataset != clip.dataset:
            clip = replace(clip, sample_id=f"{clip.dataset}/{clip.sample_id}")
            same = first.get(clip.sample_id)
        if same:
            reason = f"malformed record: its id is already used in {same.where}"
            reading.rejects.append(Reject(clip.sample_id, clip.name, clip.where, reason))
        else:
            first[clip.sample_id] = clip
    reading.clips = list(first.values())


def _exclude(reading: Reading, excluded: frozenset[str]) -> None:
    """Leave out the clips with these ids. Raise UserError if an id belongs to no clip and to no reject."""
    ids = [clip.sample_id for clip in reading.clips] + [reject.sample_id for reject in reading.rejects]
    check_known(excluded, ids, "the recipe")
    kept = [clip for clip in reading.clips if clip.sample_id not in excluded]
    reading.excluded, reading.clips = len(reading.clips) - len(kept), kept


def encodable(item: Clip | BadRecord) -> Clip | Reject:
    r"""Return a clip whose texts UTF-8 can encode, or a reject: of a bad record or an unpaired surrogate ("\ud83d")."""
    if isinstance(item, BadRecord):
        return _reject(item.id, item.media, item.where, item.reason)
    if max(len(item.sample_id), len(item.name)) > LONGEST_NAME:
        return _reject(item.sample_id[:100], item.name[:100], item.where, f"its id exceeds {LONGEST_NAME:,} characters")
    texts = [item.sample_id, item.name, *(t.text for t in item.turns), *(s.caption for s in item.scenes)]
    if all(fits_utf8(text) for text in texts):
        return item
    return _reject(item.sample_id, item.name, item.where, "a text contains an unpaired surrogate")


def _reject(sample_id: str, media: str, where: str, reason: str) -> Reject:
    return Reject(*map(_escaped, (sample_id, media, where, f"malformed record: {reason}")))


def _escaped(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
