"""Build a shard folder from a recipe: read annotations, build parts in parallel, then name them all in a manifest."""

import fcntl
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.clips import Clip, Reject
from data_prep.decode import decoder_version
from data_prep.limits import MEMORY
from data_prep.parts import WORK_FOLDER, Fragment, Job, load_fragment, load_rows
from data_prep.pool import STALL, Task, build_parts
from data_prep.progress import Reporter
from data_prep.recipe import Recipe, differences, load_recipe, resolve
from data_prep.sources import Reading, read_sources
from ma2mba.errors import UserError
from ma2mba.model.conversation import load_tokenizer
from ma2mba.shards.format import (
    INDEX_FILE,
    MANIFEST_FILE,
    PAYLOAD_FOLDER,
    REJECTS_FILE,
    REPORT_FILE,
    TOKENIZER_FILE,
    IndexRow,
)
from ma2mba.shards.integrity import atomic_path, atomic_write
from ma2mba.shards.manifest import Manifest, SourceEntry, file_entry, hash_json, read_manifest, write_manifest
from ma2mba.shards.writer import write_index

RECIPE_FILE = "recipe.json"


def build(
    recipe_path: Path, out: Path, workers: int, stall: float = STALL, memory: int = MEMORY
) -> tuple[dict[str, Any], list[Reject]]:
    """Build, or go on with a build that was stopped; returns the report and what was rejected.

    The report's `already_built` tells that there was nothing to do. Raises UserError for a bad recipe, a folder that
    holds something else, or when not one sample can be made; then nothing is left in `out`.
    """
    recipe = load_recipe(recipe_path)
    base = recipe_path.parent
    tokenizer = (base / recipe.tokenizer).resolve()
    load_tokenizer(tokenizer)
    resolved = resolve(recipe, base, decoder_version(recipe.decoder))
    finished = _check_folder(out, resolved)
    if finished:
        report = json.loads((out / REPORT_FILE).read_bytes())
        lines = (out / REJECTS_FILE).read_text(encoding="utf-8").splitlines()
        return report | {"already_built": True}, [Reject(**json.loads(line)) for line in lines]
    reading = read_sources(recipe, base)
    _require_something(reading, recipe_path, reading.rejects)
    job = Job(out, recipe, hash_json(resolved), tokenizer, memory)
    with _work_folder(out, resolved):
        fragments = _build_all(job, split(reading.clips, recipe.clips_per_part), workers, stall)
        report, rejects = _finish(job, resolved, reading, fragments, recipe_path)
    shutil.rmtree(out / WORK_FOLDER)
    return report | {"already_built": False}, rejects


def split(clips: list[Clip], size: int) -> list[list[Clip]]:
    """Consecutive clips, `size` a part: independent of the number of workers."""
    return [clips[i : i + size] for i in range(0, len(clips), size)]


def _check_folder(out: Path, resolved: dict[str, Any]) -> bool:
    """Whether `out` is this build, finished. Raises UserError when it holds anything else."""
    if not out.exists():
        return False
    started = out / WORK_FOLDER / RECIPE_FILE
    if (out / MANIFEST_FILE).exists():
        found: dict[str, Any] = read_manifest(out).recipe
    elif started.exists():
        found = json.loads(started.read_bytes())
    elif out.is_dir() and not any(path.name != WORK_FOLDER for path in out.iterdir()):
        return False
    else:
        raise UserError(f"{out}: holds other files and no shards; name a new folder")
    if changes := differences(found, resolved):
        listed = "\n".join(f"  {line}" for line in changes)
        raise UserError(f"{out}: was built by another recipe; name a new folder. What differs:\n{listed}")
    if not (out / MANIFEST_FILE).exists():
        return False
    shutil.rmtree(out / WORK_FOLDER, ignore_errors=True)
    return True


@contextmanager
def _work_folder(out: Path, resolved: dict[str, Any]) -> Iterator[None]:
    """Hold `out` for this process alone. Raises UserError while another build holds it."""
    work = out / WORK_FOLDER
    work.mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out}: another build is writing here; wait for it or name a new folder") from None
        if not (work / RECIPE_FILE).exists():
            with atomic_write(work / RECIPE_FILE) as file:
                json.dump(resolved, file)
        yield


def _build_all(job: Job, parts: list[list[Clip]], workers: int, stall: float) -> list[Fragment]:
    """Build the parts that are not there yet; returns the fragments of all."""
    there = {part: fragment for part in range(len(parts)) if (fragment := load_fragment(job.out, part))}
    done = sum(len(parts[part]) for part in there)
    rejects = sum(len(fragment.rejects) for fragment in there.values())
    tasks: list[Task] = [(part, clips, {}) for part, clips in enumerate(parts) if part not in there]
    with Reporter(f"building {job.out.name}", sum(map(len, parts)), done) as reporter:

        def advance(clips: int, rejected: int) -> None:
            nonlocal rejects
            rejects += rejected
            reporter.advance(clips, f"{rejects} rejected" if rejects else "")

        build_parts(job, tasks, workers, advance, stall)
    return [fragment for part in range(len(parts)) if (fragment := load_fragment(job.out, part))]


def _finish(
    job: Job, resolved: dict[str, Any], reading: Reading, fragments: list[Fragment], recipe_path: Path
) -> tuple[dict[str, Any], list[Reject]]:
    """Write index, rejects, report, tokenizer and, last, the manifest."""
    out = job.out
    rows = [row for part in range(len(fragments)) for row in load_rows(out, part)]
    rejects = reading.rejects + [reject for fragment in fragments for reject in fragment.rejects]
    if not rows:
        shutil.rmtree(out)
        _require_something(Reading(), recipe_path, rejects)
    for stale in (out / PAYLOAD_FOLDER).glob(".*.tmp"):
        stale.unlink()
    report = make_report(reading, rows, rejects, sum(fragment.silent_scenes for fragment in fragments))
    write_index(out / INDEX_FILE, rows)
    with atomic_write(out / REJECTS_FILE) as file:
        file.writelines(json.dumps(asdict(reject)) + "\n" for reject in rejects)
    with atomic_write(out / REPORT_FILE) as file:
        json.dump(report, file, indent=1)
    with atomic_path(out / TOKENIZER_FILE) as temporary:
        shutil.copyfile(job.tokenizer, temporary)
    write_manifest(out, _manifest(job, resolved, rows, fragments))
    return report, rejects


def _manifest(job: Job, resolved: dict[str, Any], rows: list[IndexRow], fragments: list[Fragment]) -> Manifest:
    small = [file_entry(job.out, name) for name in (INDEX_FILE, REJECTS_FILE, REPORT_FILE, TOKENIZER_FILE)]
    return Manifest(
        image_size=job.recipe.image_size,
        fps=job.recipe.fps,
        recipe=resolved,
        recipe_hash=job.recipe_hash,
        tokenizer_sha256=resolved["tokenizer_sha256"],
        decoder=job.recipe.decoder,
        decoder_version=resolved["decoder_version"],
        sources=_sources(job.recipe, rows),
        files=small + [fragment.payload for fragment in fragments if fragment.payload],
        samples=len(rows),
        frames=sum(row.frames for row in rows),
        tokens=sum(len(row.token_ids) for row in rows),
    )


def _sources(recipe: Recipe, rows: list[IndexRow]) -> list[SourceEntry]:
    """One entry a data set, in the recipe's order."""
    samples = Counter(row.dataset for row in rows)
    named = {source.name: source for source in recipe.sources}
    return [SourceEntry(name=n, format=s.format, weight=s.weight, samples=samples[n]) for n, s in named.items()]


def make_report(reading: Reading, rows: list[IndexRow], rejects: list[Reject], silent_scenes: int) -> dict[str, Any]:
    """Counts of a build; the same for every run of it."""
    return {
        "records": reading.records,
        "conversations_before_grouping": reading.ungrouped,
        "conversations_after_grouping": len(reading.clips),
        "samples": len(rows),
        "by_dataset": _by_dataset(reading, rows),
        "partial": sum(row.status == "partial" for row in rows),
        "rejected": len(rejects),
        "rejected_by_reason": dict(sorted(Counter(reject.reason for reject in rejects).items())),
        "scenes_without_a_sampled_frame": silent_scenes,
        "frames": sum(row.frames for row in rows),
        "seconds": round(sum(row.duration for row in rows), 3),
        "text_tokens": sum(len(row.token_ids) for row in rows),
        "supervised_tokens": int(sum(row.supervised.sum() for row in rows)),
    }


def _by_dataset(reading: Reading, rows: list[IndexRow]) -> dict[str, dict[str, int]]:
    samples = Counter(row.dataset for row in rows)
    return {name: counts | {"samples": samples[name]} for name, counts in reading.by_dataset.items()}


def _require_something(reading: Reading, recipe_path: Path, rejects: list[Reject]) -> None:
    if reading.clips:
        return
    shown = [f"  {reject.where} {reject.media}: {reject.reason}" for reject in rejects[:20]]
    more = [f"  and {len(rejects) - 20} more"] if len(rejects) > 20 else []
    raise UserError(
        "\n".join([f"{recipe_path}: not one sample can be made of its records; repair them:", *shown, *more])
    )
