"""`ma2mba doctor`: show this machine's versions and devices, and verify the operations on it."""

import math
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table
from rich.text import Text

from ma2mba.cli.output import Json, err, out, print_json
from ma2mba.planner.memory import GIB

if TYPE_CHECKING:
    import torch

    from ma2mba.ops.selftest import Row

PACKAGES = ("torch", "triton", "mamba-ssm", "causal-conv1d", "deepspeed", "transformers")


def doctor(as_json: Json = False) -> None:
    """Show versions, devices and memory, and compare the operations with plain torch in fp64.

    Exits with code 1 on any mismatch.
    """
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = _facts(device)
    with err.status("Comparing operations with plain torch (GPU kernels are compiled first)"):
        rows = _self_test(device)
    wrong = sum(not row.ok for row in rows)
    if as_json:
        facts |= {"self_test": [_plainly(row) for row in rows], "ok": not wrong}
        print_json(facts)
    else:
        _show(facts, rows, wrong)
    if wrong:
        raise typer.Exit(1)


def _facts(device: "torch.device") -> dict[str, Any]:
    import platform

    import torch

    from ma2mba import __version__
    from ma2mba.adapters.auto_plan import free_bytes
    from ma2mba.ops.backend import choice

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    backend, reason = choice(device)
    return {
        "versions": {
            "ma2mba": __version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
            "cuda": torch.version.cuda,
        },
        "devices": [
            {"name": gpu.name, "bytes": gpu.total_memory, "free_bytes": free_bytes(torch.device("cuda", i))}
            for i, gpu in enumerate(gpus)
        ],
        "host_free_bytes": free_bytes(torch.device("cpu")),
        "operations": {"device": device.type, "run_in": backend, "because": reason},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _self_test(device: "torch.device") -> "list[Row]":
    from ma2mba.ops.selftest import self_test
    from ma2mba.training.kernel_check import schedule_rows

    return [*self_test(device), *schedule_rows(device)]


def _plainly(row: "Row") -> dict[str, Any]:
    """Return a row for JSON, which has no NaN."""
    return {**vars(row), "error": row.error if math.isfinite(row.error) else None, "ok": row.ok}


def _show(facts: dict[str, Any], rows: "list[Row]", wrong: int) -> None:
    machine = Table("machine", "", title_justify="left")
    for name, number in facts["versions"].items():
        machine.add_row(name, number or "not installed")
    for gpu in facts["devices"]:
        machine.add_row("GPU", f"{gpu['name']}, {_gib(gpu['bytes'])} GiB, {_gib(gpu['free_bytes'])} GiB free")
    if not facts["devices"]:
        machine.add_row("GPU", "PyTorch finds none")
    machine.add_row("host memory", f"{_gib(facts['host_free_bytes'])} GiB free")
    operations = facts["operations"]
    machine.add_row("operations", f"run in {operations['run_in']}: {operations['because']}")
    out.print(machine)
    tested = Table("self-test", "case", "results", "worst", "error", "at most", "")
    for case in dict.fromkeys((row.operation, row.case) for row in rows):
        of_case = [row for row in rows if (row.operation, row.case) == case]
        shown = [row for row in of_case if not row.ok] or [max(of_case, key=lambda row: row.error / row.bound)]
        for row in shown:
            verdict = Text("ok", "green") if row.ok else Text("wrong", "bold red")
            what = row.note or row.what
            tested.add_row(*case, str(len(of_case)), what, f"{row.error:.1e}", f"{row.bound:.1e}", verdict)
    out.print(tested)
    out.print(f"{wrong} of {len(rows)} results are wrong" if wrong else f"all {len(rows)} results are right")


def _gib(size: float) -> str:
    return f"{size / GIB:,.1f}"
