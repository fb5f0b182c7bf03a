"""`ma2mba plan`: which plan trains fastest in the memory that there is, why, and what would fit."""

import json
import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ma2mba.errors import UserError
from ma2mba.planner.memory import GIB

if TYPE_CHECKING:
    from ma2mba.planner.choose import Planner
    from ma2mba.planner.predict import Prediction
    from ma2mba.planner.schedule import Workload
    from ma2mba.training.fit.pricing import Machine, Setup

out = Console(highlight=False)


class Ops(StrEnum):
    """What runs a layer."""

    KERNELS = "kernels"
    TORCH = "torch"


Memory = Annotated[float | None, typer.Option("--device-memory", min=0.01, help="Of one GPU, in GiB (2^30 bytes).")]
HostMemory = Annotated[
    float | None,
    typer.Option("--host-memory", min=0.01, help="For one GPU's process, in GiB; without it states stay on the GPU."),
]


Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[key=value ...]", help="Change a recipe's keys, as in training.")
]
SHAPE = "init_from=null 'model={language_model: {d_model: 2560, n_layer: 64}, vision: {}}'"


def plan(
    overrides: Overrides = None,
    model: Annotated[str, typer.Option("--model", help="370m, 1.3b, 2.7b, or a training recipe (YAML).")] = "2.7b",
    tokens: Annotated[int | None, typer.Option("--tokens", min=1, help="Length of a text, all of it learned.")] = None,
    video_hours: Annotated[
        float | None, typer.Option("--video-hours", min=0.0003, help="Length of a video at 1 frame a second.")
    ] = None,
    device_memory: Memory = None,
    host_memory: HostMemory = None,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="GPUs that ZeRO shares out to.")] = 1,
    zero: Annotated[int | None, typer.Option("--zero", min=0, max=3, help="ZeRO stage (a recipe's, or 1).")] = None,
    ops: Annotated[
        Ops, typer.Option("--ops", help="Price a GPU's kernels (measured if there is a GPU here) or plain torch.")
    ] = Ops.KERNELS,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw memory against length to this PNG.")] = None,
    paper: Annotated[bool, typer.Option("--paper", help="Only the paper's own memory model, Tables 3 and 7.")] = False,
) -> None:
    """Choose how to checkpoint: the fastest plan that fits, the next best, memory by part, the longest sequence."""
    if paper:
        _paper(as_json)
        return
    given = {"--device-memory": device_memory, "--host-memory": host_memory, "--video-hours": video_hours}
    _check(tokens, given)
    from ma2mba.training.fit.fitting import length, remedy
    from ma2mba.training.fit.pricing import SampleLength, can_capture, make_planner

    setup, ranks = _setup(model, overrides or [], gpus, zero)
    sample = SampleLength(0, tokens) if tokens else SampleLength.of_video(video_hours or 0.0)
    whole = sample.workload(setup.config)
    share = whole.rank_share(ranks)
    machine = _machine(device_memory or 0.0, host_memory, ops, graphs=can_capture(setup.zero, ranks))
    planner = make_planner(setup, share, machine)
    facts = _facts(planner, whole, share, machine.priced)
    if facts is None:
        raise UserError(f"{length(share)} do not fit into {device_memory:g} GiB; {remedy(planner, share)}")
    if as_json:
        print(json.dumps(facts, allow_nan=False))
    else:
        _show(facts)
    if plot:
        _plot(planner, whole, ranks, model, plot)


def _check(tokens: int | None, given: dict[str, float | None]) -> None:
    if (tokens is None) == (given["--video-hours"] is None):
        raise UserError("give one of --tokens and --video-hours: how long is the longest sequence?")
    if given["--device-memory"] is None:
        raise UserError("--device-memory is missing; give a GPU's memory in GiB, as in --device-memory 80")
    for option, number in given.items():
        if number is not None and not math.isfinite(number):
            raise UserError(f"{option} {number}: give a finite number")


def _setup(model: str, overrides: list[str], gpus: int, zero: int | None) -> tuple["Setup", int]:
    """What is trained how, and by how many ranks for each sequence."""
    from dataclasses import replace

    import torch

    from ma2mba.training.fit.pricing import Setup, config_of_size, setup_of_recipe
    from ma2mba.training.model_source import find_source
    from ma2mba.training.recipe.loading import load_recipe

    if Path(model).suffix not in (".yaml", ".yml"):
        if overrides:
            raise UserError(
                f"{overrides[0]}: changes a recipe, and --model {model} is none; remove it, or give a recipe"
            )
        return Setup(config_of_size(model), gpus=gpus, zero=1 if zero is None else zero), 1
    recipe = load_recipe(model, overrides)
    if recipe.model is None and isinstance(recipe.init_from, str) and not Path(recipe.init_from).is_dir():
        raise UserError(
            f"{model}: init_from: {recipe.init_from} does not exist; name a run or model folder, as in "
            f"init_from=runs/stage1, or a shape: {SHAPE}"
        )
    ranks = recipe.parallel.sequence
    if gpus % ranks:
        raise UserError(
            f"--gpus {gpus} is not a multiple of {model}'s parallel.sequence: {ranks}; "
            f"give --gpus {-(-gpus // ranks) * ranks}, or another parallel.sequence"
        )
    dtype = torch.float32 if recipe.precision == "fp32" else torch.bfloat16
    setup = setup_of_recipe(recipe, gpus, dtype, find_source(recipe).read_config())
    return (setup if zero is None else replace(setup, zero=zero)), ranks


def _machine(device_gib: float, host_gib: float | None, ops: Ops, graphs: bool) -> "Machine":
    """Return the machine to plan for. `graphs` allows plans that capture chunks as CUDA graphs (`can_capture`)."""
    from ma2mba.training.fit.pricing import Machine, priced_here

    here = priced_here(ops is Ops.KERNELS)
    return Machine(device_gib * GIB, host_gib and host_gib * GIB, "here" if here else ops.value, graphs)


PRICED = {
    "here": "measured on the GPU here, through its kernels",
    "kernels": "those of a GPU's kernels, from their shapes; times are an H200's",
    "torch": "those of plain torch; times are an H200's",
}


def _facts(planner: "Planner", whole: "Workload", share: "Workload", priced: str) -> dict[str, Any] | None:
    choice = planner.choose(share)
    if choice is None:
        return None
    longest = planner.longest(share)
    return {
        "tokens": whole.tokens,
        "ranks": share.ranks,
        "rank_tokens": share.tokens,
        "priced": priced,
        "usable_device_bytes": planner.budget.device,
        "choice": _prediction(choice.best, whole),
        "runner_up": choice.runner_up and _prediction(choice.runner_up, whole),
        "reasons": list(choice.reasons),
        "longest": {"tokens": longest[0], "plan": vars(longest[1])} if longest else None,
    }


def _prediction(prediction: "Prediction", workload: "Workload") -> dict[str, Any]:
    return {
        "plan": vars(prediction.plan),
        "device_bytes": prediction.device_bytes,
        "device_parts": prediction.device,
        "host_bytes": prediction.host_bytes,
        "host_parts": prediction.host,
        "peak_at": prediction.moment,
        "seconds": round(prediction.seconds, 3),
        "tokens_per_second": round(workload.tokens / prediction.seconds),
    }


def _show(facts: dict[str, Any]) -> None:
    from ma2mba.magc import Plan
    from ma2mba.training.fit.fitting import describe

    shown = [("choice", facts["choice"])] + ([("runner-up", facts["runner_up"])] if facts["runner_up"] else [])
    ranks = facts["ranks"]
    table = Table("", title=f"{facts['tokens']:,} tokens", title_justify="left")
    for name, _ in shown:
        table.add_column(name, justify="right")
    if ranks > 1:
        table.add_row(f"tokens on each of {ranks} ranks", *(f"{facts['rank_tokens']:,}" for _ in shown))
    for key in facts["choice"]["plan"]:
        table.add_row(key, *(_value(p["plan"][key]) for _, p in shown))
    table.add_section()
    for part in dict.fromkeys(part for _, p in shown for part in p["device_parts"]):
        table.add_row(f"{part}, GiB", *(_gib(p["device_parts"].get(part, 0)) for _, p in shown))
    table.add_row("[bold]device memory, GiB", *(f"[bold]{_gib(p['device_bytes'])}" for _, p in shown))
    table.add_row("host memory, GiB", *(_gib(p["host_bytes"]) for _, p in shown))
    table.add_section()
    table.add_row("seconds, forward and backward", *(f"{p['seconds']:,.1f}" for _, p in shown))
    table.add_row("tokens a second", *(f"{p['tokens_per_second']:,}" for _, p in shown))
    out.print(table)
    out.print(f"Peak: {facts['choice']['peak_at']}. Usable: {_gib(facts['usable_device_bytes'])} GiB.")
    out.print(f"Prices are {PRICED[facts['priced']]}.")
    if ranks > 1:
        out.print(f"chunk_tokens counts the tokens of all {ranks} ranks. The time is without their exchanges.")
    out.print("Instead of the choice")
    for reason in facts["reasons"]:
        out.print(f"  {reason}")
    if facts["longest"]:
        plan = describe(Plan(**facts["longest"]["plan"]))
        out.print(
            f"Longest that fits with the states of every chunk kept: {facts['longest']['tokens']:,} tokens, {plan}"
        )


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _plot(planner: "Planner", whole: "Workload", ranks: int, title: str, path: Path) -> None:
    """Memory of the fastest plan and of the smallest, from an eighth of the length to eight times it."""
    from dataclasses import replace

    from ma2mba.plots import draw_plan

    lengths = [max(round(whole.tokens * 2.0**k), 1) for k in range(-3, 4)]
    workloads = [replace(whole, tokens=tokens).rank_share(ranks) for tokens in lengths]
    chosen = [planner.choose(workload) for workload in workloads]
    curves: dict[str, list[float | None]] = {
        "fastest plan that fits": [choice.best.device_bytes / GIB if choice else None for choice in chosen],
        "smallest plan": [planner.smallest(workload).device_bytes / GIB for workload in workloads],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    name = Path(title).stem if title.endswith((".yaml", ".yml")) else title
    draw_plan(f"Device memory of {name}", lengths, curves, planner.budget.device / GIB, path)


def _paper(as_json: bool) -> None:
    from ma2mba.planner.paper import PEAKS_GB, SHAPES, constants, memory

    table7 = {name: vars(constants(shape)) for name, shape in SHAPES.items()}
    table3: list[dict[str, Any]] = []
    for name, peaks in PEAKS_GB.items():
        for tokens, peak in zip((2**k for k in range(10, 20)), peaks, strict=False):
            formula = round(memory(SHAPES["2.7b"], tokens, name) / GIB, 3)
            table3.append({"schedule": name, "tokens": tokens, "paper_gb": peak, "formula_gib": formula})
    if as_json:
        print(json.dumps({"table7": table7, "table3": table3}, allow_nan=False))
        return
    exact = Table("", *table7["2.7b"], title="Table 7, bf16 elements", title_justify="left")
    for name, row in table7.items():
        exact.add_row(name, *(f"{value:,}" for value in row.values()))
    compared = Table("2.7b", "tokens", "paper, GB", "Eq. 12-16, GiB", "", title="Table 3", title_justify="left")
    for row in table3:
        paper, formula = row["paper_gb"], row["formula_gib"]
        cells = (f"{row['tokens']:,}", f"{paper:.1f}", f"{formula:.1f}", f"{formula / paper - 1:+.0%}")
        compared.add_row(row["schedule"], *cells)
    out.print(exact)
    out.print(compared)


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f}"
