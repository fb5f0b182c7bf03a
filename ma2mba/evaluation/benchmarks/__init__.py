"""Benchmarks by name: `read_benchmark` returns the questions of one, with its authors' prompts."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ma2mba.annotations.published import annotation_files, published_folder
from ma2mba.errors import UserError
from ma2mba.evaluation.benchmarks import (
    activitynet_qa,
    longtimescope,
    longvideobench,
    lvbench,
    mlvu,
    mvbench,
    nextqa,
    perception_test,
    video_mme,
)
from ma2mba.evaluation.benchmarks.base import Benchmark, Source
from ma2mba.evaluation.items import Item

_ALL = (
    *(video_mme.BENCHMARK, longvideobench.BENCHMARK, mvbench.BENCHMARK, mlvu.BENCHMARK, lvbench.BENCHMARK),
    *(longtimescope.BENCHMARK, nextqa.MC, nextqa.OE, activitynet_qa.BENCHMARK, perception_test.BENCHMARK),
)
BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}


def read_benchmark(
    name: str,
    data: Path | str,
    *,
    media: Path | str | None = None,
    split: str | None = None,
    subtitles: bool = False,
    online: bool = False,
) -> list[Item]:
    """Return the questions of a benchmark, in the order of its files.

    `data` is the folder of the published files, or a name on the Hugging Face hub, which is looked up in the hub's
    cache; with `online`, its annotations are downloaded. `media` is the folder of the videos and subtitles (default:
    the data's folder). `split`: see `Benchmark.layout` (default: the first one that is there). With `subtitles`,
    prompts contain them.

    Raise UserError if the files are missing or malformed, with the file, the record and the reason.
    """
    benchmark = BENCHMARKS.get(name)
    if benchmark is None:
        raise UserError(f"--benchmark {name}: unknown. Use one of {', '.join(BENCHMARKS)}")
    if subtitles and not benchmark.subtitles:
        having = ", ".join(other.name for other in _ALL if other.subtitles)
        raise UserError(f"--subtitles: {benchmark.title} has none. Benchmarks with subtitles: {having}")
    if media is not None and not os.path.isdir(media):
        raise UserError(f"--media {media}: this folder does not exist. Give the folder of the videos")
    more = benchmark.subtitles if subtitles else ()
    folder = published_folder(data, benchmark.layout, more=more, online=online)
    _, files = annotation_files(folder, benchmark.layout, split)
    source = Source(folder, Path(media) if media is not None else folder, files, subtitles=subtitles)
    items = list(_with_unique_ids(benchmark.items(source)))
    if not items:
        raise UserError(f"{folder}: the annotation files hold no question. Get the files again")
    return items


def _with_unique_ids(items: Iterator[Item]) -> Iterator[Item]:
    """Yield the items; the second of one id becomes "id#2"."""

    seen = Counter[str]()
    for item in items:
        seen[item.id] += 1
        yield item if seen[item.id] == 1 else replace(item, id=f"{item.id}#{seen[item.id]}")
