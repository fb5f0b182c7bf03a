"""`ma2mba replay`: re-run the samples of a failed step, one by one."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ma2mba.cli.output import Device, Json, device_name, err, out, print_json
from ma2mba.terminal import one_line

if TYPE_CHECKING:
    from ma2mba.training.faults.replay import Replayed


def replay(
    file: Annotated[Path, typer.Argument(help="RUN/replay/step-000123.json.")],
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Re-run each sample of the failed step separately. Exits with code 1 if a sample is not finite again.

    The weights come from the checkpoint before the step, so the effect of the steps in between is not repeated.
    """
    import torch

    from ma2mba.training.faults import replay as work

    kept = work.read(file)
    with err.status(f"re-running the samples of step {kept.step}"):
        rows = list(work.replay(kept, torch.device(device_name(device))))
    again = [row for row in rows if not row.fine]
    if as_json:
        facts = {"step": kept.step, "loss": str(kept.loss), "checkpoint": kept.checkpoint, "reproduced": bool(again)}
        samples = [asdict(row) | {"loss": str(row.loss), "gradient_norm": str(row.gradient_norm)} for row in rows]
        print_json({**facts, "samples": samples})
    else:
        out.print(_table(rows, kept.checkpoint))
        out.print(_verdict(again, kept.step), soft_wrap=True)
    raise typer.Exit(1 if again else 0)


def _table(rows: "list[Replayed]", checkpoint: str | None) -> Table:
    table = Table("sample", title=f"weights: {one_line(checkpoint or 'initial weights')}", title_justify="left")
    for heading in ("rank", "tokens", "frames", "loss", "gradient norm"):
        table.add_column(heading, justify="right")
    table.add_column("first output that is not finite", overflow="fold")
    for row in rows:
        numbers = (str(row.rank), f"{row.tokens:,}", f"{row.frames:,}", f"{row.loss:.4g}", f"{row.gradient_norm:.4g}")
        table.add_row(
            one_line(row.sample_id), *numbers, row.first_not_finite or "", style="" if row.fine else "bold red"
        )
    return table


def _verdict(again: "list[Replayed]", step: int) -> str:
    if again:
        return f"Not finite again: {one_line(', '.join(row.sample_id for row in again))}"
    return (
        f"All samples of step {step} are finite alone, with these weights. The cause is in the steps in between (try "
        "smaller learning rates, or precision=fp32), or in the machine"
    )
