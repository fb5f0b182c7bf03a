"""NExT-QA: questions about why and how things happen in short videos, with five options (MC) or without (OE).

The authors' models do not read prompts. The wording is that of lmms-eval's tasks `nextqa_mc_test` and `nextqa_oe_val`;
the request for the letter is the one of LongVideoBench and Perception Test.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ma2mba.annotations import nextqa
from ma2mba.evaluation.benchmarks.base import Benchmark, Source, lettered
from ma2mba.evaluation.items import Item

MAP = "map_vid_vidorID.json"


def _layout(kind: str, folder: str) -> dict[str, tuple[str, ...]]:
    return {
        split: tuple(
            pattern.format(split=split, long=long)
            for pattern in (f"{folder}/{{split}}.csv", f"dataset/{folder}/{{split}}.csv", f"{kind}/{{long}}-*.parquet")
        )
        + (
            f"{split}.csv",
            f"annotations/{split}.csv",
            f"{long}-*.parquet",
            f"*/{long}-*.parquet",
            *(("*.csv",) if split == "train" else ()),
        )
        for split, long in (("test", "test"), ("val", "validation"), ("train", "train"))
    }


PLACES = ("NExTVideo", "videos", "video", "")
CHOOSE = "Answer with the option's letter from the given choices directly."
SHORT = "Answer a question using a short phrase or sentence."


def mc_items(source: Source) -> Iterator[Item]:
    """Make the multiple-choice questions, in the order of the file. Task: type, as in CW (causal, why)."""
    for record in _with_map(source).records(nextqa.read_mc):
        yield Item(
            id=f"{record.video}-{record.qid}",
            medium=source.video(record.where, _names(record), PLACES),
            question=record.question,
            options=record.options,
            gold=record.options[record.answer],
            gold_index=record.answer,
            task=record.type or "all",
            prompt=f"{record.question}\n{lettered(record.options)}\n{CHOOSE}",
        )


def oe_items(source: Source) -> Iterator[Item]:
    """Make the open questions, in the order of the file. Task: type."""
    for record in _with_map(source).records(nextqa.read_oe):
        yield Item(
            id=f"{record.video}-{record.qid}",
            medium=source.video(record.where, _names(record), PLACES),
            question=record.question,
            gold=record.answer,
            task=record.type or "all",
            prompt=f"{record.question}\n{SHORT}",
        )


def _with_map(source: Source) -> Source:
    """Return the source with the map of videos, if the folder has one."""
    found = [path for pattern in (MAP, f"*/{MAP}", f"*/*/{MAP}") for path in sorted(source.folder.glob(pattern))]
    return Source(source.folder, source.media, [*source.files, *[(str(path), path) for path in found[:1]]])


def _names(record: nextqa.NextQARecord) -> Sequence[str]:
    """Return the video's path in the map ("1106/4010069381"), and its bare number."""
    return str(Path(record.media).with_suffix("")), record.video


MC = Benchmark("nextqa-mc", "NExT-QA (multiple choice)", _layout("MC", "nextqa"), mc_items)
OE = Benchmark("nextqa-oe", "NExT-QA (open-ended)", _layout("OE", "nextoe"), oe_items, open_ended=True)
