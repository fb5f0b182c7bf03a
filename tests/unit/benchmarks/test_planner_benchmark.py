"""The benchmark of the planner: on counted bytes, its predictions are right."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_it_compares_predictions_with_counted_bytes(tmp_path):
    command = [sys.executable, "benchmarks/planner.py", "--device", "cpu", "--size", "tiny", "--out", tmp_path / "out"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    cases = json.loads((tmp_path / "out").read_text())["cases"]
    assert cases == [json.loads(line) for line in done.stdout.splitlines()]
    assert len({case["plan"]["chunk_tokens"] for case in cases}) > 1
    for case in cases:
        assert case["predicted_gib"]["torch"] <= case["limit_gib"]
        assert case["ratio"] == pytest.approx(1, abs=0.02)  # measured: 0.1%
