"""`ma2mba plan`: find the plan that trains fastest in the given memory, and give the reasons."""

import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ma2mba.cli.output import Json, out, print_json
from ma2mba.errors import UserError
from ma2mba.planner.memory import GIB
from ma2mba.shipped import recipe_names

if TYPE_CHECKING:
    from ma2mba.planner.choose import Planner
    from ma2mba.planner.predict import Prediction
    from ma2mba.planner.schedule import Workload
    from ma2mba.training.fit.pricing import Machine, Setup


class Ops(StrEnum):
    """The operations that layers run."""

    KERNELS = "kernels"
    TORCH = "torch"


Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="key=value", help="Override keys of the recipe, as in training.")
]
Model = Annotated[str, typer.Option("--model", help="370m, 1.3b, 2.7b, or a training recipe (a YAML file, or a name).")]
Tokens = Annotated[
    int | None, typer.Option("--tokens", min=1, help="Plan for a text of this many tokens, all supervised.")
]
Hours = Annotated[
    float | None,
    typer.Option("--video-hours", min=0.0003, help="Plan for a video of this length at 1 frame a second."),
]
Memory = Annotated[
    float | None, typer.Option("--device-memory", min=0.01, help="Memory of one GPU, in GiB (2^30 bytes).")
]
HostMemory = Annotated[
    float | None,
    typer.Option(
        "--host-memory",
        min=0.01,
        help="Host memory for the process of one GPU, in GiB (default: none; states stay on the GPU).",
    ),
]
Gpus = Annotated[int, typer.Option("--gpus", min=1, help="Number of GPUs that ZeRO shards over.")]
Zero = Annotated[
    int | None, typer.Option("--zero", min=0, max=3, help="ZeRO stage (default: the recipe's; 1 without a recipe).")
]
PricedOps = Annotated[
    Ops, typer.Option("--ops", help="Price GPU kernels (measured if this machine has a GPU) or plain torch.")
]
Plot = Annotated[Path | None, typer.Option("--plot", help="Plot memory against sequence length to this PNG file.")]
Paper = Annotated[bool, typer.Option("--paper", help="Show only the paper's memory model (Tables 3 and 7).")]
NEW_MODEL = "init_from=null 'model={language_model: {d_model: 2560, n_layer: 64}, vision: {}}'"


def plan(
    overrides: Overrides = None,
    model: Model = "2.7b",
    tokens: Tokens = None,
    video_hours: Hours = None,
    device_memory: Memory = None,
    host_memory: HostMemory = None,
    gpus: Gpus = 1,
    zero: Zero = None,
    ops: PricedOps = Ops.KERNELS,
    as_json: Json = False,
    plot: Plot = None,
    paper: Paper = False,
) -> None:
    """Find the fastest checkpointing plan that fits in memory.

    Shows the plan, the next best plan, what their memory is used for, and the longest sequence that fits.
    """
    if paper:
        _paper(as_json)
        return
    given = {"--device-memory": device_memory, "--host-memory": host_memory, "--video-hours": video_hours}
    _check(tokens, given)
    from ma2mba.training.fit.fitting import length, smallest
    from ma2mba.training.fit.pricing import SampleLength, can_capture, make_planner

    setup, ranks = _setup(model, overrides or [], gpus, zero)
    sample = SampleLength(0, tokens) if tokens else SampleLength.of_video(video_hours or 0.0)
    whole = sample.workload(setup.config)
    share = whole.rank_share(ranks)
    machine = _machine(device_memory or 0.0, host_memory, ops, graphs=can_capture(setup.zero, ranks))
    planner = make_planner(setup, share, machine)
    facts = _facts(planner, whole, share, machine.priced)
    if facts is None:
        raise UserError(f"no plan fits {length(share)} into {device_memory:g} GiB; {smallest(planner, share)}")
    if as_json:
        print_json(facts)
    else:
        _show(facts)
    if plot:
        _plot(planner, whole, ranks, model, plot)


def _check(tokens: int | None, given: dict[str, float | None]) -> None:
    if (tokens is None) == (given["--video-hours"] is None):
        raise UserError("the length of the sequence is missing or given twice; give either --tokens or --video-hours")
    if given["--device-memory"] is None:
        raise UserError("--device-memory is missing; give the memory of one GPU in GiB, for example --device-memory 80")
    for option, number in given.items():
        if number is not None and not math.isfinite(number):
            raise UserError(f"{option} {number}: not a finite number; give a finite number")


def _setup(model: str, overrides: list[str], gpus: int, zero: int | None) -> tuple["Setup", int]:
    """Return how the model is trained, and how many ranks share each sequence."""
    from dataclasses import replace

    import torch

    from ma2mba.training.fit.pricing import Setup, config_of_size, setup_of_recipe
    from ma2mba.training.model_source import find_source
    from ma2mba.training.recipe.loading import load_recipe

    if Path(model).suffix not in (".yaml", ".yml") and model not in recipe_names():
        if overrides:
            raise UserError(
                f"{overrides[0]}: --model {model} is not a recipe, so it has no keys to override; "
                "remove the override, or give a recipe"
            )
        return Setup(config_of_size(model), gpus=gpus, zero=1 if zero is None else zero), 1
    recipe = load_recipe(model, overrides)
    if recipe.model is None and isinstance(recipe.init_from, str) and not Path(recipe.init_from).is_dir():
        raise UserError(
            f"{model}: init_from: {recipe.init_from} does not exist; give a run or model folder, for example "
            f"init_from=runs/stage1, or describe a new model: {NEW_MODEL}"
        )
    ranks = recipe.parallel.sequence
    if gpus % ranks:
        raise UserError(
            f"--gpus {gpus} is not a multiple of {model}'s parallel.sequence: {ranks}; "
            f"use --gpus {-(-gpus // ranks) * ranks}, or another parallel.sequence"
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
    "here": "Memory and times were measured on this machine's GPU.",
    "kernels": "Memory is estimated for GPU kernels from their shapes. Times are estimated for an H200.",
    "torch": "Memory is estimated for plain torch. Times are estimated for an H200.",
}


def _facts(planner: "Planner", whole: "Workload", share: "Workload", priced: str) -> dict[str, Any] | None:
    """Return the JSON object of the command, or None if no plan fits."""
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
    for use in dict.fromkeys(use for _, p in shown for use in p["device_parts"]):
        table.add_row(f"{use}, GiB", *(_gib(p["device_parts"].get(use, 0)) for _, p in shown))
    table.add_row("device memory, GiB", *(_gib(p["device_bytes"]) for _, p in shown), style="bold")
    table.add_row("host memory, GiB", *(_gib(p["host_bytes"]) for _, p in shown))
    table.add_section()
    table.add_row("seconds, forward and backward", *(f"{p['seconds']:,.1f}" for _, p in shown))
    table.add_row("tokens per second", *(f"{p['tokens_per_second']:,}" for _, p in shown))
    out.print(table)
    out.print(f"Peak of the choice: {facts['choice']['peak_at']}.")
    out.print(f"Usable device memory: {_gib(facts['usable_device_bytes'])} GiB.")
    out.print(PRICED[facts["priced"]])
    if ranks > 1:
        out.print(f"chunk_tokens counts the tokens of all {ranks} ranks. Times exclude the exchanges between ranks.")
    out.print("Alternatives to the choice:")
    for reason in facts["reasons"]:
        out.print(f"  {reason}")
    if facts["longest"]:
        plan = describe(Plan(**facts["longest"]["plan"]))
        out.print(
            f"Longest sequence that fits without recomputing states: {facts['longest']['tokens']:,} tokens, {plan}"
        )


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _plot(planner: "Planner", whole: "Workload", ranks: int, title: str, path: Path) -> None:
    """Plot the memory of the fastest and the smallest plan, from an eighth of the length to 8 times the length."""
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
    """Print the paper's Tables 7 and 3, the latter with what the paper's formula gives."""
    from ma2mba.model.sizes import SIZES
    from ma2mba.planner.paper import PEAKS_GB, constants, memory

    table7 = {name: vars(constants(config)) for name, config in SIZES.items()}
    table3: list[dict[str, Any]] = []
    for name, peaks in PEAKS_GB.items():
        for tokens, peak in zip((2**k for k in range(10, 20)), peaks, strict=False):
            formula = round(memory(SIZES["2.7b"], tokens, name) / GIB, 3)
            table3.append({"schedule": name, "tokens": tokens, "paper_gb": peak, "formula_gib": formula})
    if as_json:
        print_json({"table7": table7, "table3": table3})
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
