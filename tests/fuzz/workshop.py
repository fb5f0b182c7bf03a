"""Start the server that fuzzes formats, and collect what it finds."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
IN_MEMORY = Path("/dev/shm")


class Workshop:
    """A server process (tests/fuzz/server.py) with the healthy examples of all formats."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path):
        self.process, self.log = process, log
        self.formats: list[str] = self._read()["ready"]

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the server ended: {self.log.read_text(errors='replace')[-3000:]}"
        return json.loads(line)

    def fuzz(self, form: str, first: int, rounds: int) -> list[dict[str, Any]]:
        """Run rounds of a format, seeds first, first + 1, ...; return what each found."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"format": form, "first": first, "rounds": rounds}) + "\n")
        self.process.stdin.flush()
        found = []
        while "end" not in (facts := self._read()):
            found.append(facts)
        return found


@contextmanager
def workshop() -> Iterator[Workshop]:
    """Yield a server; remove its folder afterwards."""
    root = Path(tempfile.mkdtemp(prefix="ma2mba-fuzz-", dir=IN_MEMORY if IN_MEMORY.is_dir() else None))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MA2MBA_LIMIT_")}
    environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "COLUMNS": "200", "PYTHONPATH": str(ROOT)}
    environment |= {"MPLCONFIGDIR": str(root), "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"MA2MBA_LIMIT_STALL_SECONDS": "10"}
    command = [sys.executable, "-m", "tests.fuzz.server", str(root)]
    log = root / "log"
    with (
        open(log, "w") as err,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, text=True, env=environment, cwd=root
        ) as process,
    ):
        try:
            yield Workshop(process, log)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
    shutil.rmtree(root, ignore_errors=True)


def complaints(form: str, results: list[dict[str, Any]]) -> str:
    """Return the problems of rounds, grouped by their cause, each with the seed of a round that has it; "" for none."""
    groups = defaultdict(list)
    for result in results:
        for problem in result["problems"]:
            groups[problem].append(result)
    lines = []
    for problem, rounds in sorted(groups.items(), key=lambda item: -len(item[1])):
        first = rounds[0]
        repeat = f"make fuzz SEED={first['seed']} ROUNDS=1 ARGS='-k {form}'"
        lines.append(f"{len(rounds)} x {problem}\n    {repeat}    {first['said']}")
    return "\n".join(lines)
