"""`ma2mba replay`: the samples of a step that stopped a run, one by one."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ma2mba.cli.devices import device_name

if TYPE_CHECKING:
    from ma2mba.training.faults.replay import Replayed

out, err = Console(highlight=False), Console(stderr=True, highlight=False)


def replay(
    file: Annotated[Path, typer.Argument(help="RUN/replay/step-000123.json.")],
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Run each sample of a step that stopped a run alone; exit code 1 if one is not finite again.

    Run it where the run was started: the recipe's paths are relative. Weights are those of the checkpoint before the
    step, so what came of the steps between is not repeated.
    """
    import torch

    from ma2mba.training.faults import replay as work

    kept = work.read(file)
    with err.status(f"step {kept.step}: each sample alone"):
        rows = list(work.replay(kept, torch.device(device_name(device))))
    again = [row for row in rows if not row.fine]
    if as_json:
        facts = {"step": kept.step, "loss": str(kept.loss), "checkpoint": kept.checkpoint, "reproduced": bool(again)}
        samples = [asdict(row) | {"loss": str(row.loss), "gradient_norm": str(row.gradient_norm)} for row in rows]
        print(json.dumps({**facts, "samples": samples}, allow_nan=False))
    else:
        out.print(_table(rows, kept.checkpoint))
        out.print(_verdict(again, kept.step), soft_wrap=True)
    raise typer.Exit(1 if again else 0)


def _table(rows: "list[Replayed]", checkpoint: str | None) -> Table:
    table = Table("sample", title=f"weights: {escape(checkpoint or 'those of the start')}", title_justify="left")
    for heading in ("rank", "tokens", "frames", "loss", "gradient norm"):
        table.add_column(heading, justify="right")
    table.add_column("first output that is not finite", overflow="fold")
    for row in rows:
        numbers = (str(row.rank), f"{row.tokens:,}", f"{row.frames:,}", f"{row.loss:.4g}", f"{row.gradient_norm:.4g}")
        table.add_row(escape(row.sample_id), *numbers, row.first_not_finite or "", style="" if row.fine else "bold red")
    return table


def _verdict(again: "list[Replayed]", step: int) -> str:
    if again:
        return f"Not finite again: {escape(', '.join(row.sample_id for row in again))}"
    return (
        f"All samples of step {step} are finite alone, with these weights: what stopped the run came of the steps in "
        "between (smaller learning rates, precision=fp32), or of the machine"
    )
