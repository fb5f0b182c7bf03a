"""The paper's own memory model."""

import pytest

from ma2mba.planner.paper import PEAKS_GB, SHAPES, Constants, Shape, constants, elements, memory, minimise


@pytest.mark.parametrize(
    ("size", "table7"),
    [
        ("370m", Constants(1024, 269056, 6432, 264448)),
        ("1.3b", Constants(2048, 537344, 12608, 528640)),
        ("2.7b", Constants(2560, 671488, 15696, 660736)),
    ],
)
def test_table_7(size, table7):
    assert constants(SHAPES[size]) == table7


@pytest.mark.parametrize("tokens", [256, 1024, 5000, 32768])
def test_the_minimum_is_that_of_every_pair(tokens):
    shape = Shape(6, 128)
    every = [(group, s) for group in range(1, 7) for s in range(256, max(tokens, 256) + 1, 256)]
    least = min(elements(shape, tokens, *pair) for pair in every)
    assert elements(shape, tokens, *minimise(shape, tokens)) == least


def test_what_of_table_3_follows_from_the_formula_and_what_does_not():
    """As the module says: two figures of MA-GC to the digit, the others lower by up to 43%."""
    formula = [memory(SHAPES["2.7b"], 2 ** (10 + i), "MA-GC") / 2**30 for i in range(10)]
    assert [round(gib, 1) for gib in formula[:2]] == list(PEAKS_GB["MA-GC"][:2])
    short = [gib / peak - 1 for gib, peak in zip(formula, PEAKS_GB["MA-GC"], strict=True)]
    assert [round(share, 2) for share in (short[2], short[5], short[9])] == [-0.14, -0.30, -0.43]
    off = memory(SHAPES["2.7b"], 2**14, "off") / 2**30
    assert off / PEAKS_GB["off"][4] - 1 == pytest.approx(-0.28, abs=0.005)
