"""The benchmark of the data runs and says what it should."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_it_measures_every_stage():
    command = [sys.executable, "benchmarks/data.py", "--json", "--seconds", "4", "--rounds", "1", "--frames", "8"]
    done = subprocess.run([*command, "--device", "cpu"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["preparation"]["plain decoder, all frames"]["ratio"] == 1
    assert all(stage["frames_per_second"] > 0 for stage in result["preparation"].values())
    assert all(rate > 0 for rate in result["reading"].values())
    assert 0 < result["features"]["ratio"] < 2
    assert 0 <= result["loader"]["waiting_share"] < 1
    sizes = result["bytes_per_hour"]
    assert sizes["features (bf16)"] == pytest.approx(3600 * 144 * 1024 * 2, rel=0.01)
    assert {"processor", "cores", "versions"} <= result["machine"].keys()
