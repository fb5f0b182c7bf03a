"""`ma2mba data`: build, audit and encode shard folders, and render toy videos."""

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from ma2mba.cli.output import Json, Verbose, out, print_json, print_line, readable
from ma2mba.errors import UserError
from ma2mba.files import writing
from ma2mba.terminal import one_line
from ma2mba.video.memory import MEMORY

if TYPE_CHECKING:
    from data_prep.preview import Preview

app = typer.Typer(no_args_is_help=True, help="Turn videos and annotations into token shards.")
Out = Annotated[Path, typer.Option("--out", help="Output folder.")]
Seconds = Annotated[str, typer.Option(help="Range of video lengths, shortest:longest, in whole seconds.")]
Seed = Annotated[int, typer.Option(help="Random seed. The same seed gives the same corpus.")]
Workers = Annotated[int, typer.Option(min=1, help="Worker processes (default: one per core).", show_default=False)]
Memory = Annotated[
    int, typer.Option(min=64, help="MB that decoding one video may use; a video that needs more is rejected.")
]
Online = Annotated[bool, typer.Option("--online", help="Read sources that name data sets on the Hugging Face hub.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Read the annotations and show what would be built. Write nothing.")
]
SHOWN = 20
"""Most rows of a table of faults."""
CORES = os.cpu_count() or 1


class Executor(StrEnum):
    """What runs the workers."""

    local = "local"
    ray = "ray"


@app.command()
def build(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML file).")],
    folder: Out,
    workers: Workers = CORES,
    memory: Memory = MEMORY >> 20,
    executor: Annotated[Executor, typer.Option(help="Run on this machine, or on a Ray cluster.")] = Executor.local,
    part: Annotated[
        str | None, typer.Option(help="i/M: build only the shards i, i + M, i + 2M, ... (task i of a SLURM array).")
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Build nothing; only join the shards that --part builds have finished.")
    ] = False,
    online: Online = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Build shards from a recipe. To resume an interrupted build, run the same command again."""
    from data_prep.running import Share

    share = Share.parse(part) if part else None
    if dry_run:
        from data_prep.preview import preview

        _show_preview(folder, preview(recipe, folder, share, online=online), as_json)
        return
    from data_prep.build import build as run_build
    from data_prep.summary import print_summary

    with writing(folder):
        report, rejects = run_build(
            recipe,
            folder,
            workers,
            memory=memory << 20,
            executor=executor.value,
            share=share,
            merge=merge,
            online=online,
        )
    if as_json:
        print_json(report)
    elif "parts_missing" in report:
        missing = f"{report['parts_missing']} of {report['parts']} shards are still missing"
        print_line(f"{folder}: --part {part} is built; {missing}")
    else:
        print_summary(folder, report, rejects)


@app.command()
def audit(
    folder: Annotated[Path, typer.Argument(help="Shard folder.")],
    repair: Annotated[bool, typer.Option("--repair", help="Rebuild damaged files from their sources.")] = False,
    source: Annotated[
        Path | None,
        typer.Option(help="Recipe (for features: the shard folder of pictures), if it was moved or built elsewhere."),
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Vision encoder of features, if they were encoded elsewhere.")
    ] = None,
    workers: Workers = CORES,
    online: Online = False,
    as_json: Json = False,
) -> None:
    """Re-read every byte of a shard folder and report damage. Exit with code 1 if damage remains."""
    from data_prep.audit import audit as run_audit
    from data_prep.summary import audit_as_json, print_audit

    report = run_audit(folder, repair=repair, source=source, encoder=encoder, workers=workers, online=online)
    print_json(audit_as_json(report)) if as_json else print_audit(report)
    raise typer.Exit(0 if report.sound else 1)


@app.command()
def encode(
    shards: Annotated[Path, typer.Argument(help="Shard folder of pictures.")],
    encoder: Annotated[str, typer.Option(help="Vision encoder: a CLIP folder, a model folder or a hub name.")],
    folder: Out,
    batch: Annotated[int, typer.Option(min=1, help="Frames per batch, across videos.")] = 64,
    device: Annotated[
        str | None, typer.Option(help="PyTorch device, for example cuda:1 (default: a GPU if there is one).")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Threads that decode pictures (default: one per core).", show_default=False)
    ] = CORES,
    as_json: Json = False,
) -> None:
    """Encode the pictures of a shard folder with a frozen vision encoder, for stages that do not train it."""
    from data_prep.encode import encode as run_encode
    from data_prep.summary import print_summary

    with writing(folder):
        report = run_encode(shards, encoder, folder, batch=batch, device=device, threads=workers)
    print_json(report) if as_json else print_summary(folder, report, [])


@app.command()
def toy(
    folder: Out,
    videos: Annotated[int, typer.Option(min=1, help="Number of long training videos.")] = 240,
    seconds: Seconds = "60:120",
    seed: Seed = 0,
    workers: Workers = CORES,
    short: Annotated[int | None, typer.Option(min=0, help="Short training videos (default: 2 per long one).")] = None,
    stills: Annotated[int | None, typer.Option(min=0, help="Captioned images (default: 4 per long video).")] = None,
    clips: Annotated[int | None, typer.Option(min=0, help="Captioned clips (default: 1 per long video).")] = None,
    held_out: Annotated[
        int | None, typer.Option(min=0, help="Videos for evaluation only (default: 1 per 5 long ones, at least 8).")
    ] = None,
    marathons: Annotated[int, typer.Option(min=0, help="Training videos of many minutes.")] = 0,
    marathon_seconds: Seconds = "200:1000",
) -> None:
    """Render a toy corpus: videos, annotations and recipes for every stage, a tokenizer and an evaluation."""
    from data_prep.toy.generate import Amounts, generate

    amounts = Amounts.derived(videos, short, stills, clips, held_out, marathons)
    length, marathon_length = parse_seconds(seconds), parse_seconds(marathon_seconds, "--marathon-seconds")
    with writing(folder):
        written = generate(folder, amounts, length, seed, workers, marathon_length)
    print_line(f"{folder}: " + ", ".join(f"{count} {name}" for name, count in written.items()))


@app.command()
def toy_eval(
    folder: Out,
    videos: Annotated[int, typer.Option(min=1, help="Number of videos.")] = 16,
    seconds: Seconds = "600:600",
    seed: Seed = 0,
    workers: Workers = CORES,
) -> None:
    """Render needle videos of any length, and their questions (eval.jsonl)."""
    from data_prep.toy.generate import generate_eval

    length = parse_seconds(seconds)
    with writing(folder):
        count = generate_eval(folder, videos, length, seed, workers)
    print_line(f"{folder}: {count} needle videos; the questions are in {folder / 'eval.jsonl'}")


def parse_seconds(text: str, option: str = "--seconds") -> tuple[int, int]:
    """Convert "60:120" to (60, 120). Raise UserError unless 2 <= shortest <= longest."""
    try:
        low, high = (int(word) for word in text.split(":"))
    except ValueError:
        raise UserError(
            f"{option} {text}: not a range. Write shortest:longest in whole seconds, for example 60:120"
        ) from None
    if not 2 <= low <= high:
        raise UserError(
            f"{option} {text}: a video lasts at least 2 s, and the shortest comes first. Write, for example, 60:120"
        )
    return low, high


def _show_preview(folder: Path, found: "Preview", as_json: bool) -> None:
    reading = found.reading
    facts = {
        "out": str(folder),
        "already_built": found.done,
        "records": reading.records,
        "samples": len(reading.clips),
        "malformed_records": len(reading.rejects),
        "missing_media": len(found.absent),
        "shards": found.shards,
        "shards_to_build": found.to_build,
        "by_dataset": reading.by_dataset,
    }
    if as_json:
        print_json(facts)
        return
    table = Table("dry run", Column(one_line(str(folder)), overflow="fold", justify="right"))
    for key, value in facts.items():
        if key not in ("out", "by_dataset"):
            table.add_row(key.replace("_", " "), readable(value))
    out.print(table)
    bad = [(reject.where, reject.media, reject.reason) for reject in reading.rejects]
    bad += [(clip.where, clip.name, f"{clip.media}: this file does not exist") for clip in found.absent]
    if bad:
        faults = Table("record", "media", "reason", title="would be rejected")
        for row in bad[:SHOWN]:
            faults.add_row(*map(one_line, row))
        out.print(faults)
        if len(bad) > SHOWN:
            out.print(f"{len(bad) - SHOWN:,} more")
    out.print("Nothing was decoded and nothing was written.")
