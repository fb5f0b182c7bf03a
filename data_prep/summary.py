"""What a person sees after a build."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data_prep.audit import AuditReport
from data_prep.clips import Reject
from ma2mba.shards.format import REJECTS_FILE

SHOWN = 20
"""Rejects listed on the screen; the file has all."""


def print_summary(out: Path, report: dict[str, Any], rejects: list[Reject]) -> None:
    """Tables on stdout: counts, counts by data set, and rejects by name and reason."""
    console = Console()
    if report["already_built"]:
        console.print(f"{escape(str(out))}: already built by this recipe; nothing to do")
    table = Table("what", "count", title=escape(str(out)))
    table.columns[1].justify = "right"
    for key, value in report.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            table.add_row(key.replace("_", " "), f"{value:,}")
    console.print(table)
    _print_datasets(console, report["by_dataset"])
    if not rejects:
        return
    table = Table("record", "media", "reason", title=f"{len(rejects)} rejected")
    for reject in rejects[:SHOWN]:
        table.add_row(escape(reject.where), escape(reject.media), escape(reject.reason))
    console.print(table)
    if len(rejects) > SHOWN:
        console.print(f"{len(rejects) - SHOWN} more in {escape(str(out / REJECTS_FILE))}")


def findings_as_json(found: AuditReport) -> dict[str, Any]:
    """The same as `print_findings` says."""
    return {
        "folder": str(found.folder),
        "files": found.files,
        "samples": found.samples,
        "bytes": found.bytes,
        "sound": found.sound,
        "damage": [asdict(damage) for damage in found.damage],
        "repaired": found.repaired,
        "unrepaired": found.unrepaired,
    }


def print_findings(found: AuditReport) -> None:
    """What was read, a table of what is damaged, and what became of it."""
    console = Console()
    console.print(
        f"{escape(str(found.folder))}: {found.files} files, {found.samples:,} samples, {found.bytes:,} bytes read"
    )
    if not found.damage:
        console.print("everything is as it was written")
        return
    table = Table("file", "sample", "damage", "now", title=f"{len(found.damage)} damaged")
    for damage in found.damage[:SHOWN]:
        now = "repaired" if damage.file in found.repaired else found.unrepaired.get(damage.file, "damaged")
        table.add_row(escape(damage.file), escape(damage.sample), escape(damage.what), escape(now))
    console.print(table)
    if len(found.damage) > SHOWN:
        console.print(f"{len(found.damage) - SHOWN} more; --json lists all")


def _print_datasets(console: Console, counts: dict[str, dict[str, int]]) -> None:
    columns = list(next(iter(counts.values())))
    table = Table("data set", *columns, title="by data set: conversations before and after grouping by video")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, row in counts.items():
        table.add_row(escape(name), *(f"{row[column]:,}" for column in columns))
    console.print(table)
