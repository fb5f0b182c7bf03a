"""Run benchmarks/exactness.py on a CPU, with a tiny model and two batches."""

import pytest
import torch

from benchmarks import exactness
from ma2mba.magc import Plan
from ma2mba.model.mamba2_config import Mamba2Config


def test_every_schedule_has_a_row_of_each_dtype(monkeypatch):
    monkeypatch.setattr(exactness, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(exactness, "BACKBONE", Mamba2Config(d_model=64, n_layer=2, vocab_size=500))
    monkeypatch.setattr(exactness, "DRAWS", 2)
    plans = [Plan("sequence", 512, 2), Plan("layer", 512, 1)]
    rows = list(exactness.rows(plans))
    kinds = [(batch_rows, dtype) for batch_rows in (1, 4) for dtype in ("fp32", "bf16")]
    assert [(row["rows"], row["dtype"], row["plan"]) for row in rows] == [(*k, vars(p)) for k in kinds for p in plans]
    for row in rows:  # measured: fp32 3.0e-6; bf16 1.16 (a parameter of two heads), surely 1.03
        assert row["worst"] < (3e-5 if row["dtype"] == "fp32" else 2)
        assert row.get("surely", 1) < 1.2


def test_the_certain_ratio_ignores_what_chance_explains():
    own = [1.0, 1.2, 0.9, 1.1]
    assert exactness.certain_ratio(own, own) == 1
    assert exactness.certain_ratio([2 * error for error in own], own) == pytest.approx(1.6, abs=0.2)
    assert exactness.certain_ratio([1.4, 0.9, 1.2, 0.9], own) < 1
