"""`ma2mba train`: one training stage, in this process or through the deepspeed launcher."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from ma2mba.cli.output import Verbose, out
from ma2mba.errors import UserError
from ma2mba.terminal import one_line

if TYPE_CHECKING:
    from ma2mba.training.preview import Preview
    from ma2mba.training.recipe.schema import Recipe

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="YAML file, or the name of a recipe of `ma2mba recipes`.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="key=value", help="Override keys of the recipe, such as data=shards run=runs/mine."),
]
Gpus = Annotated[
    int | None,
    typer.Option(
        "--gpus",
        min=1,
        help="Ranks to start on this machine, or on each node of --hostfile. Without GPUs they train on the CPU.",
    ),
]
Hostfile = Annotated[
    Path | None, typer.Option("--hostfile", help="Start the ranks of every line NODE slots=RANKS (docs/cluster.md).")
]
Echo = Annotated[bool, typer.Option("--json", help="Print every line of metrics.jsonl on stdout as well.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be read, planned and written. Train and write nothing.")
]


def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    gpus: Gpus = None,
    hostfile: Hostfile = None,
    dry_run: DryRun = False,
    as_json: Echo = False,
    verbose: Verbose = False,
) -> None:
    """Train one stage. To resume an interrupted run, run the same command again.

    Without --gpus and --hostfile, train in this process. A process for which a launcher has set WORLD_SIZE is one of
    its ranks. Paths in the recipe count from the recipe's folder, paths in key=value from the current directory.
    Exit codes: 0 done, or stopped by a signal and saved; 1 a rank failed; 2 the input is wrong; 3 a step took too long.
    """
    if (gpus or hostfile) and "WORLD_SIZE" in os.environ:
        raise UserError(
            f"--{'gpus' if gpus else 'hostfile'}: WORLD_SIZE={os.environ['WORLD_SIZE']} is set, so a launcher has "
            "already started this process as a rank. Remove the option, or unset WORLD_SIZE"
        )
    if dry_run and as_json:
        raise UserError("--json: --dry-run trains nothing, so that there is no metrics.jsonl. Remove one of both")
    if dry_run:
        _show_preview(load(recipe, overrides), gpus, hostfile)
    elif gpus or hostfile:
        from ma2mba.training.launcher import launch

        load(recipe, overrides)  # refuse a wrong recipe here, before ranks start
        options = (("--verbose", verbose), ("--json", as_json))
        arguments = [recipe, *(overrides or []), *(name for name, on in options if on)]
        raise typer.Exit(launch(arguments, gpus, hostfile))
    else:
        from ma2mba.training.rank import train_stage

        raise typer.Exit(train_stage(recipe, overrides or [], verbose=verbose, echo=as_json))


def load(recipe: str, overrides: list[str] | None) -> "Recipe":
    from ma2mba.training.recipe.loading import load_recipe

    return load_recipe(recipe, overrides or [])


def _show_preview(recipe: "Recipe", gpus: int | None, hostfile: Path | None) -> None:
    from dataclasses import replace

    from ma2mba.training.nodes import slots
    from ma2mba.training.preview import preview
    from ma2mba.training.world import World

    world = World.from_environment()
    if gpus or hostfile:
        nodes = slots(hostfile) if hostfile else [gpus or 1]
        ranks = [min(gpus, count) if gpus else count for count in nodes]
        world = replace(world, size=sum(ranks), local_size=max(ranks))
    found = preview(recipe, world)
    table = Table("dry run", Column(one_line(recipe.run), overflow="fold"), show_lines=True)
    for name, value in (*_read(found), *_planned(found), *_written(found)):
        table.add_row(name, value)
    out.print(table)
    out.print("Nothing was trained and nothing was written.")


def _read(found: "Preview") -> Iterator[tuple[str, str]]:
    """Yield what the run reads: weights and shards."""
    yield "weights", found.source.describe()
    rates = found.data.recipe.trainable
    parameters = (
        f"{name}: {count:,} parameters, "
        + (f"learning rate {rate:g}" if (rate := getattr(rates, name)) is not None else "frozen")
        for name, count in found.parameters.items()
    )
    yield "components", "\n".join(parameters)
    dataset = found.data.dataset
    for source, rows, reader in zip(found.data.recipe.sources, dataset.rows, dataset.readers, strict=True):
        weight = "" if source.weight == 1 else f", weight {source.weight:g}"
        left_out = f", {excluded:,} excluded" if (excluded := len(reader.rows) - len(rows)) else ""
        frames = sum(row.frames for row in rows)
        yield "shards", f"{one_line(source.path)}\n{len(rows):,} samples, {frames:,} frames{weight}{left_out}"
    longest = int(dataset.length_N.argmax())
    yield "longest sample", f"{dataset.length_N[longest]:,} tokens, {dataset.frames_N[longest]:,} frames"


def _planned(found: "Preview") -> Iterator[tuple[str, str]]:
    """Yield how the run trains."""
    from ma2mba.training.fit.fitting import describe, memory

    recipe, world = found.data.recipe, found.world
    dtype = str(world.dtype(recipe.precision)).removeprefix("torch.")
    yield "ranks", f"{world.size} on {world.device.type}, {dtype}, ZeRO {found.policy.stage}"
    accumulation = recipe.global_batch // (recipe.micro_batch * world.groups)
    groups = f"{world.groups} rank{'s' * (world.groups > 1)}" if world.sequence == 1 else f"{world.groups} groups"
    batches = f"{recipe.micro_batch} in a micro-batch * {groups} * {accumulation} accumulated"
    yield "global batch", f"{recipe.global_batch} samples = {batches}"
    yield "steps", f"{found.data.steps:,}" + (f", resumed after {found.start.state.step:,}" if found.start else "")
    yield "checkpointing plan", describe(found.fitted_plan.plan)
    yield "predicted memory", memory(found.fitted_plan.prediction)


def _written(found: "Preview") -> Iterator[tuple[str, str]]:
    """Yield what the run writes."""
    saves, kept = found.saves, found.data.recipe.checkpoint
    if not saves:
        yield "writes", "nothing: the run is finished"
        return
    shown = ", ".join(f"{step:,}" for step in saves[:4]) + (f", ..., {saves[-1]:,}" if len(saves) > 4 else "")
    keeps = "all" if kept.keep_last is None else f"the last {kept.keep_last}"
    if kept.keep_every:
        keeps += f" and every {kept.keep_every:,}th step"
    yield "writes", f"recipe.yaml, metrics.jsonl, TensorBoard events\ncheckpoints after steps {shown}; keeps {keeps}"
