"""Run benchmarks/serving.py on a CPU, with a tiny model."""

import json
import sys

from benchmarks import serving
from ma2mba.serving import frames_ahead


def test_every_case_has_a_line(monkeypatch, tmp_path):
    monkeypatch.setattr(frames_ahead, "FrameReader", frames_ahead.FrameReader)  # the benchmark replaces it
    out = tmp_path / "results.jsonl"
    options = {"--size": "tiny", "--tokens": "12", "--temperature": "1", "--seconds": "600", "--out": str(out)}
    words = [word for option in options.items() for word in option]
    monkeypatch.setattr(sys, "argv", ["serving.py", "--visitors", "1", "4", *words])
    assert serving.main() == 0
    cases = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(case["case"], case.get("visitors")) for case in cases] == [
        ("watched", 1),
        ("watched", 4),
        ("alone", None),
        ("reading", 1),
        ("reading", 4),
    ]
    for case in cases:
        if case["case"] != "alone":
            assert case["answers"] >= case["visitors"]
            assert 0 < case["first_token_median"] <= case["first_token_most"]
            assert case["tokens_per_second"] > 0
            assert case["longest_pause"] < 60
        if case["case"] != "watched":
            assert case["frames_per_second"] > 0
