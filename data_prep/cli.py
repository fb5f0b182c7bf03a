"""The command line of data preparation: build, audit, encode, toy, toy-eval."""

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from ma2mba.errors import UserError
from ma2mba.files import writing
from ma2mba.video.limits import MEMORY

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Turn videos and annotations into token shards.")
Out = Annotated[Path, typer.Option(help="Output folder.")]
Seconds = Annotated[str, typer.Option(help="Range of video lengths, shortest:longest, in whole seconds.")]
Seed = Annotated[int, typer.Option(help="Random seed. The same seed gives the same corpus.")]
Workers = Annotated[int, typer.Option(min=1, help="Worker processes (default: one per core).", show_default=False)]
Memory = Annotated[
    int, typer.Option(min=64, help="MB that decoding one video may use; a video that needs more is rejected.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")]
CORES = os.cpu_count() or 1


class Executor(StrEnum):
    """What runs the workers."""

    local = "local"
    ray = "ray"


@app.command()
def build(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML file).")],
    out: Out,
    workers: Workers = CORES,
    memory: Memory = MEMORY >> 20,
    executor: Annotated[Executor, typer.Option(help="Run on this machine, or on a Ray cluster.")] = Executor.local,
    part: Annotated[
        str | None, typer.Option(help="i/M: build only the shards i, i + M, i + 2M, ... (task i of a SLURM array).")
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Build nothing; only join the shards that --part builds have finished.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Build shards from a recipe. To resume an interrupted build, run the same command again."""
    from data_prep.build import build as run_build
    from data_prep.running import Share
    from data_prep.summary import print_summary

    share = Share.parse(part) if part else None
    with writing(out):
        report, rejects = run_build(
            recipe, out, workers, memory=memory << 20, executor=executor.value, share=share, merge=merge
        )
    if as_json:
        print(json.dumps(report))
    elif "parts_missing" in report:
        print(f"{out}: --part {part} is built; {report['parts_missing']} of {report['parts']} shards are still missing")
    else:
        print_summary(out, report, rejects)


@app.command()
def audit(
    folder: Annotated[Path, typer.Argument(help="Shard folder.")],
    repair: Annotated[bool, typer.Option("--repair", help="Rebuild damaged files from their sources.")] = False,
    source: Annotated[
        Path | None,
        typer.Option(help="New path of the recipe (for features: of the shard folder of pictures), if it was moved."),
    ] = None,
    workers: Workers = CORES,
    as_json: AsJson = False,
) -> None:
    """Re-read every byte of a shard folder and report damage. Exit with code 1 if damage remains."""
    from data_prep.audit import audit as run_audit
    from data_prep.summary import audit_as_json, print_audit

    report = run_audit(folder, repair=repair, source=source, workers=workers)
    print(json.dumps(audit_as_json(report))) if as_json else print_audit(report)
    raise typer.Exit(0 if report.sound else 1)


@app.command()
def encode(
    shards: Annotated[Path, typer.Argument(help="Shard folder of pictures.")],
    encoder: Annotated[str, typer.Option(help="Vision encoder: a CLIP folder, a model folder or a hub name.")],
    out: Out,
    batch: Annotated[int, typer.Option(min=1, help="Frames per batch, across videos.")] = 64,
    device: Annotated[
        str | None, typer.Option(help="PyTorch device, for example cuda:1 (default: a GPU if there is one).")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Threads that decode pictures (default: one per core).", show_default=False)
    ] = CORES,
    as_json: AsJson = False,
) -> None:
    """Encode the pictures of a shard folder with a frozen vision encoder, for stages that do not train it."""
    from data_prep.encode import encode as run_encode
    from data_prep.summary import print_summary

    with writing(out):
        report = run_encode(shards, encoder, out, batch=batch, device=device, threads=workers)
    print(json.dumps(report)) if as_json else print_summary(out, report, [])


@app.command()
def toy(
    out: Out,
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
) -> None:
    """Render a toy corpus: videos, annotations and recipes for every stage, a tokenizer and an evaluation."""
    from data_prep.toy.generate import Amounts, generate

    amounts = Amounts.derived(videos, short, stills, clips, held_out)
    length = parse_seconds(seconds)
    with writing(out):
        written = generate(out, amounts, length, seed, workers)
    Console().print(f"{out}: " + ", ".join(f"{count} {name}" for name, count in written.items()))


@app.command()
def toy_eval(
    out: Out,
    videos: Annotated[int, typer.Option(min=1, help="Number of videos.")] = 16,
    seconds: Seconds = "600:600",
    seed: Seed = 0,
    workers: Workers = CORES,
) -> None:
    """Render needle videos of any length, and their questions (eval.jsonl)."""
    from data_prep.toy.generate import generate_eval

    length = parse_seconds(seconds)
    with writing(out):
        count = generate_eval(out, videos, length, seed, workers)
    Console().print(f"{out}: {count} needle videos; the questions are in {out / 'eval.jsonl'}")


def parse_seconds(text: str) -> tuple[int, int]:
    """Convert "60:120" to (60, 120). Raise UserError unless 2 <= shortest <= longest."""
    try:
        low, high = (int(word) for word in text.split(":"))
    except ValueError:
        raise UserError(
            f"--seconds {text}: not a range. Write shortest:longest in whole seconds, for example 60:120"
        ) from None
    if not 2 <= low <= high:
        raise UserError(
            f"--seconds {text}: a video lasts at least 2 s, and the shortest comes first. Write, for example, 60:120"
        )
    return low, high


def main() -> None:
    """Run the command line. Print a UserError and exit with code 2."""
    try:
        app()
    except UserError as error:
        Console(stderr=True).print("[bold red]error:[/]", escape(str(error)), highlight=False, soft_wrap=True)
        raise SystemExit(2) from None
