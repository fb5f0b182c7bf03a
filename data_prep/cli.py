"""The command line of data preparation: build, toy, toy-eval."""

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
Out = Annotated[Path, typer.Option(help="Folder to write.")]
Seconds = Annotated[str, typer.Option(help="Length of the videos, shortest:longest in seconds.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same corpus.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes; by default one a core.")]
Memory = Annotated[int, typer.Option(min=64, help="MB that decoding one video may take; more rejects it.")]
Count = Annotated[int | None, typer.Option(min=0, help="By default a share of --videos.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")]
CORES = os.cpu_count() or 1


class Executor(StrEnum):
    """What runs the workers."""

    local = "local"
    ray = "ray"


@app.command()
def build(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    out: Out,
    workers: Workers = CORES,
    memory: Memory = MEMORY >> 20,
    executor: Annotated[Executor, typer.Option(help="Processes of this machine, or a Ray cluster.")] = Executor.local,
    part: Annotated[
        str | None, typer.Option(help="i/M: only the parts i, i + M, ... (one task of a SLURM array).")
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Only join the parts that --part tasks have built.")] = False,
    as_json: AsJson = False,
) -> None:
    """Build shards; run the same command again to go on after an interruption."""
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
        print(f"{out}: this share is built; {report['parts_missing']} of {report['parts']} parts are still missing")
    else:
        print_summary(out, report, rejects)


@app.command()
def audit(
    folder: Annotated[Path, typer.Argument(help="A shard folder.")],
    repair: Annotated[bool, typer.Option("--repair", help="Make what is damaged again from the sources.")] = False,
    source: Annotated[Path | None, typer.Option(help="Where the recipe (of features: the pictures) lies now.")] = None,
    workers: Workers = CORES,
    as_json: AsJson = False,
) -> None:
    """Re-read every byte of a shard folder and name what is damaged; exit code 1 when something is (still)."""
    from data_prep.audit import audit as run_audit
    from data_prep.summary import findings_as_json, print_findings

    found = run_audit(folder, repair=repair, source=source, workers=workers)
    print(json.dumps(findings_as_json(found))) if as_json else print_findings(found)
    raise typer.Exit(0 if found.sound else 1)


@app.command()
def encode(
    shards: Annotated[Path, typer.Argument(help="A shard folder of pictures.")],
    encoder: Annotated[str, typer.Option(help="The vision encoder: a CLIP or model folder, or a hub name.")],
    out: Out,
    batch: Annotated[int, typer.Option(min=1, help="Frames that the encoder sees at once, across videos.")] = 64,
    device: Annotated[str | None, typer.Option(help="As PyTorch names it; by default a GPU if there is one.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Threads that decode pictures.")] = CORES,
    as_json: AsJson = False,
) -> None:
    """Replace the pictures of a shard folder by the features of a frozen encoder: for stages that do not train it."""
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
    short: Count = None,
    stills: Count = None,
    clips: Count = None,
    held_out: Count = None,
) -> None:
    """Render a corpus of toy videos with annotations for every stage, recipes, a tokenizer and an evaluation."""
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
    """Render needle videos of any length and their eval.jsonl."""
    from data_prep.toy.generate import generate_eval

    length = parse_seconds(seconds)
    with writing(out):
        count = generate_eval(out, videos, length, seed, workers)
    Console().print(f"{out}: {count} needle videos, questions in {out / 'eval.jsonl'}")


def parse_seconds(text: str) -> tuple[int, int]:
    """ "60:120" -> (60, 120). Raises UserError unless 2 <= shortest <= longest."""
    try:
        low, high = (int(part) for part in text.split(":"))
    except ValueError:
        raise UserError(f"--seconds {text}: write shortest:longest in whole seconds, as in 60:120") from None
    if not 2 <= low <= high:
        raise UserError(f"--seconds {text}: a video lasts at least 2 s and the shortest comes first, as in 60:120")
    return low, high


def main() -> None:
    """Run the command line; a UserError is printed and ends with exit code 2."""
    try:
        app()
    except UserError as error:
        Console(stderr=True).print("[bold red]error:[/]", escape(str(error)), highlight=False, soft_wrap=True)
        raise SystemExit(2) from None
