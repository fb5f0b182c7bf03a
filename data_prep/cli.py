"""The command line of data preparation: build, toy, toy-eval."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from data_prep.limits import MEMORY
from ma2mba.errors import UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Turn videos and annotations into token shards.")
Out = Annotated[Path, typer.Option(help="Folder to write.")]
Seconds = Annotated[str, typer.Option(help="Length of the videos, shortest:longest in seconds.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same corpus.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes; by default one a core.")]
Memory = Annotated[int, typer.Option(min=64, help="MB that decoding one video may take; more rejects it.")]
Count = Annotated[int | None, typer.Option(min=0, help="By default a share of --videos.")]
CORES = os.cpu_count() or 1


@app.command()
def build(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    out: Out,
    workers: Workers = CORES,
    memory: Memory = MEMORY >> 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")] = False,
) -> None:
    """Build shards; run the same command again to go on after an interruption."""
    from data_prep.build import build as run_build
    from data_prep.summary import print_summary

    report, rejects = run_build(recipe, out, workers, memory=memory << 20)
    if as_json:
        print(json.dumps(report))
    else:
        print_summary(out, report, rejects)


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
    written = generate(out, amounts, parse_seconds(seconds), seed, workers)
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

    count = generate_eval(out, videos, parse_seconds(seconds), seed, workers)
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
