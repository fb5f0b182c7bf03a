"""Print the result of a build, and the report of an audit."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from data_prep.audit_report import AuditReport
from data_prep.clips import Reject
from ma2mba.shards.format import REJECTS_FILE
from ma2mba.terminal import Terminal, one_line

SHOWN = 20
"""Most rejects, and most damaged samples, that are printed."""


def print_summary(out: Path, report: dict[str, Any], rejects: list[Reject]) -> None:
    """Print tables of counts, counts per data set, and rejects with their reasons."""
    console = Terminal()
    if report["already_built"]:
        console.print(f"{out}: already built by this recipe; nothing to do")
    table = Table("what", "count", title=one_line(str(out)))
    table.columns[1].justify = "right"
    for key, value in report.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            table.add_row(key.replace("_", " "), f"{value:,}")
    console.print(table)
    if report.get("by_dataset"):
        _print_datasets(console, report["by_dataset"])
    if not rejects:
        return
    table = Table("record", "media", "reason", title=f"{len(rejects)} rejected")
    for reject in rejects[:SHOWN]:
        table.add_row(one_line(reject.where), one_line(reject.media), one_line(reject.reason))
    console.print(table)
    if len(rejects) > SHOWN:
        console.print(f"{len(rejects) - SHOWN} more in {out / REJECTS_FILE}")


def _print_datasets(console: Terminal, counts: dict[str, dict[str, int]]) -> None:
    """Print a table of counts with one row per data set."""
    columns = list(next(iter(counts.values())))
    table = Table("data set", *columns, title="per data set: conversations before and after grouping by video")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, row in counts.items():
        table.add_row(one_line(name), *(f"{row[column]:,}" for column in columns))
    console.print(table)


def audit_as_json(report: AuditReport) -> dict[str, Any]:
    """Return the content of `print_audit` as a JSON object."""
    return asdict(report) | {"folder": str(report.folder), "sound": report.sound}


def print_audit(report: AuditReport) -> None:
    """Print how much was read, and a table of the damage with the state of each file after repairs."""
    console = Terminal()
    console.print(f"{report.folder}: {report.files} files, {report.samples:,} samples, {report.bytes:,} bytes read")
    if not report.damage:
        console.print("no damage found")
        return
    if report.sources:
        console.print(f"rebuilt from {', '.join(report.sources)}")
    table = Table("file", "sample", "damage", "now", title=f"{len(report.damage)} damaged")
    for damage in report.damage[:SHOWN]:
        now = "repaired" if damage.file in report.repaired else report.unrepaired.get(damage.file, "damaged")
        table.add_row(one_line(damage.file), one_line(damage.sample), one_line(damage.what), one_line(now))
    console.print(table)
    if len(report.damage) > SHOWN:
        console.print(f"{len(report.damage) - SHOWN} more; --json lists all")
