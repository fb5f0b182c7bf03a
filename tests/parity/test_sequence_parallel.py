"""A chunk's tokens split over 2 and 3 ranks against one process, in fp64 over gloo."""

import pytest
import torch
import torch.multiprocessing as mp

from ma2mba.magc import Plan
from tests.parity.split import outcome, work

PARTS = {
    2: [
        [(5, 4)],
        [(7, 6), (5, 8), (3, 2)],
        [(6, 6), (1, 2), (0, 1)],
        [(2, 0), (0, 9), (1, 1), (4, 0)],
    ],
    3: [
        [(4, 5, 3), (1, 1, 1), (0, 0, 1)],
        [(1, 0, 2), (0, 2, 0), (9, 8, 7), (2, 0, 0)],
    ],
}
"""Tokens of every rank in every chunk; the convolution looks back over 3."""
PLANS = [
    Plan("sequence", 4, 1),
    Plan("sequence", 4, 2),
    Plan("sequence", 4, 2, stash_every=2),
    Plan("layer", 4, 1),
]
BOUND = 1e-10
"""Relative; measured: at most 2e-15 in any value, state or gradient."""


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_that_share_a_sequence_do_as_one_process(ranks, tmp_path):
    cases = [(parts, 1 + i % 2, plan) for i, parts in enumerate(PARTS[ranks]) for plan in PLANS]
    mp.spawn(work, (ranks, tmp_path, cases), nprocs=ranks)
    by_rank = [torch.load(tmp_path / f"{rank}.pt") for rank in range(ranks)]
    for i, case in enumerate(cases):
        shares, whole = outcome(*case)
        for name, expected in shares.items():
            assert relative(sum(outcomes[i][0][name] for outcomes in by_rank), expected) < BOUND, (name, case)
        for name, expected in whole.items():
            for outcomes in by_rank:
                assert relative(outcomes[i][1][name], expected) < BOUND, (name, case)


def relative(found, expected) -> float:
    return ((found - expected).norm() / expected.norm()).item()
