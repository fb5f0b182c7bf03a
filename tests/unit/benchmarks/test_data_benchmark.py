"""The data benchmark runs and reports every stage. Its speeds are not tested: they depend on the machine's load."""

import importlib.util
import json
import sys
from functools import partial
from pathlib import Path

import pytest

from ma2mba.shards.reader import ShardReader

ROOT = Path(__file__).resolve().parents[3]
SECONDS, FRAMES, WIDTH = 3, 8, 64
LENGTHS = {"s0": 30, "s1": 64, "s2": 30, "s3": 300}
"""Frames of the first four samples; the other twelve samples have the same numbers."""


@pytest.fixture
def program(monkeypatch):
    """benchmarks/data.py, with a small encoder."""
    spec = importlib.util.spec_from_file_location("data_benchmark", ROOT / "benchmarks" / "data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    small = {"hidden_size": WIDTH, "intermediate_size": 64, "num_attention_heads": 1}
    monkeypatch.setattr(module, "ClipConfig", partial(module.ClipConfig, **small))
    return module


@pytest.fixture
def noted(program, monkeypatch):
    """What its stages have processed: frames of the video, and (sample, frame) read while reading and loading."""
    noted = {"decode_all": [], "decode_sampled": [], "reading": [], "loading": []}
    frames = ShardReader.frames

    def note_result(work, found, *arguments):
        found.append(work(*arguments))
        return found[-1]

    def note_reads(work, found, *arguments):
        def noting(reader, row, start=0, stop=None):
            found.extend((row.sample_id, n) for n in range(start, row.frames if stop is None else stop))
            return frames(reader, row, start, stop)

        with monkeypatch.context() as during:
            during.setattr(ShardReader, "frames", noting)
            return work(*arguments)

    for name, found in noted.items():
        note = note_reads if name.endswith("ing") else note_result
        monkeypatch.setattr(program, name, partial(note, getattr(program, name), found))
    return noted


def test_it_measures_every_stage(program, noted, monkeypatch, capsys):
    amounts = ["--seconds", str(SECONDS), "--rounds", "1", "--frames", str(FRAMES), "--tokens-per-second", "1e6"]
    monkeypatch.setattr(sys, "argv", ["data.py", "--json", "--device", "cpu", *amounts])
    program.main()
    result = json.loads(capsys.readouterr().out)
    assert list(result["preparation"]) == [
        "plain decoder, all frames",
        "decode",
        "encode (resize, crop, JPEG)",
        "write",
        "decode + encode + write",
    ]
    assert noted["decode_all"] == [30 * SECONDS]
    assert {len(pictures) for pictures in noted["decode_sampled"]} == {SECONDS}
    assert result["reading"].keys() == {"read", "read + decode to pixels"}
    long = sum(length >= program.RANGE for length in LENGTHS.values())
    assert len(noted["reading"]) == 2 * program.RANGE * 4 * long
    every = {(f"s{i}", n) for i in range(16) for n in range(LENGTHS[f"s{i % 4}"])}
    assert set(noted["loading"]) == every
    assert result["loader"]["frames_per_sample"] == len(every) / 16
    assert result["loader"]["trainer_tokens_per_second"] == 1e6
    sizes = result["bytes_per_hour"]
    # measured: 0.7%, the headers of a small file
    assert sizes["features (bf16)"] == pytest.approx(3600 * program.TOKENS_PER_FRAME * WIDTH * 2, rel=0.02)
    assert {"processor", "cores", "versions"} <= result["machine"].keys()
