"""A chunk's tokens split over 2 and 3 ranks against one process, over gloo; in fp64 but for one case in bf16."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

from ma2mba.magc import Plan
from ma2mba.ops.reference.layer import mamba2_layer_reference
from ma2mba.ops.selftest import Sizes, layer_inputs, layer_outcome
from tests.parity.split import Case, Outcome, bf16_outcome, layers_outcome, work
from tests.parity.split_model import model_outcome

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


TRAINED = {"vision": Plan("sequence", 17, 1), "projector": Plan("sequence", 6, 2), "language_model": Plan("layer", 6)}
"""A part of the model that alone is trained, and a plan: parts of a chunk without frames, or with nothing to learn,
must take part in everything."""


@pytest.mark.slow
def test_two_ranks_that_share_a_sequence_do_as_one_process(tmp_path):
    shapes = [(parts, 1 + i % 2) for i, parts in enumerate(PARTS[2])]
    cases: list[Case] = [partial(layers_outcome, *shape, plan) for shape in shapes for plan in PLANS]
    agree([*cases, *(partial(model_outcome, part, plan) for part, plan in TRAINED.items())], 2, tmp_path)


def test_so_do_three(tmp_path):
    agree([partial(layers_outcome, parts, 2, plan) for parts in PARTS[3] for plan in PLANS[1:3]], 3, tmp_path)


def test_a_bf16_layer_on_parts_is_as_near_to_fp64_as_on_the_whole(tmp_path):
    """Kernels where there is a GPU, two ranks share then. In fp32, in Triton's interpreter, all is within 9e-7."""
    shapes = [([300, 213], 1), ([2, 511], 2), ([0, 5], 1), ([1, 1], 2)]
    cases: list[Case] = [partial(bf16_outcome, *shape) for shape in shapes]
    for (lengths, batch), case, found in zip(shapes, cases, by_rank(2, tmp_path, cases), strict=True):
        given = layer_inputs(Sizes(), sum(lengths), batch, torch.bfloat16)
        exact = layer_outcome(mamba2_layer_reference, given, Sizes(), torch.float64)
        shares, whole = case(None)
        for name, other in (shares | whole).items():
            right = exact[int(name)]
            results = [total(found, name)] if name in shares else [of_rank[name] for _, of_rank in found]
            assert max(relative(result, right) for result in results) < max(2 * relative(other, right), 3e-3), name


def agree(cases: Sequence[Case], ranks: int, folder: Path) -> None:
    for case, found in zip(cases, by_rank(ranks, folder, cases), strict=True):
        shares, whole = case(None)
        # The biases of the keys have a gradient of zero but for rounding: softmax does not see them.
        smallest = 1e-6 * max(tensor.norm().item() for tensor in shares.values())
        for name, tensor in shares.items():
            assert relative(total(found, name), tensor, smallest) < BOUND, (name, case)
        for name, tensor in whole.items():
            assert max(relative(of_rank[name], tensor, smallest) for _, of_rank in found) < BOUND, (name, case)


def by_rank(ranks: int, folder: Path, cases: Sequence[Case]) -> list[tuple[Outcome, ...]]:
    """For each case the outcomes of all ranks."""
    mp.spawn(work, (ranks, folder, cases), nprocs=ranks)
    return list(zip(*(torch.load(folder / f"{rank}.pt") for rank in range(ranks)), strict=True))


def total(found: Sequence[Outcome], name: str) -> Tensor:
    return torch.stack([shares[name] for shares, _ in found]).sum(0)


def relative(found: Tensor, expected: Tensor, smallest: float = 1e-300) -> float:
    return ((found - expected).norm() / expected.norm().clamp(min=smallest)).item()
