"""Run benchmarks/sequence_parallel.py on two CPU ranks and check the JSON object that it writes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def test_two_ranks_check_and_measure(tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = ["--size", "tiny", "--device", "cpu", "--tokens", "300", "--chunk", "64", "--repeats", "1"]
    command = [*launcher, "benchmarks/sequence_parallel.py", *arguments, "--out", str(tmp_path / "out.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["ranks"] == 2
    assert result["check"]["shared"] < 1e-5  # measured: 2e-6, alone 1e-6
    assert result["shared"]["loss"] == pytest.approx(result["alone"]["loss"], rel=1e-6)
    assert result["ratio"] > 0
