"""A chunk's tokens split over 2 and 3 ranks, against one process. Over gloo, in fp64 (one case in bf16)."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import torch.multiprocessing as mp
from torch import Tensor

from ma2mba.magc import Plan
from ma2mba.ops.reference.layer import mamba2_layer_reference
from ma2mba.ops.selftest import Sizes, layer_inputs, layer_outcome
from tests.parity.split import Case, Outcome, bf16_outcome, layers_outcome, work
from tests.parity.split_model import model_outcome

SLICES = {
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
"""Tokens of every rank in every chunk. The convolution reads the last 3 inputs."""
PLANS = [
    Plan("sequence", 64, 1),
    Plan("sequence", 64, 2),
    Plan("sequence", 64, 2, stash_every=2),
    Plan("layer", 64, 1),
]
BOUND = 1e-10
"""Relative error; measured at most 2e-15 in any value, state or gradient."""


TRAINED = {"vision": Plan("sequence", 17, 1), "projector": Plan("sequence", 6, 2), "language_model": Plan("layer", 6)}
"""The only trained component, and a plan. Ranks whose slice has no frames, or no supervised token, must make the same
calls as all others."""


def test_two_ranks_that_share_a_sequence_equal_one_process(tmp_path):
    shapes = [(slices, 1 + i % 2) for i, slices in enumerate(SLICES[2])]
    cases: list[Case] = [partial(layers_outcome, *shape, plan) for shape in shapes for plan in PLANS]
    cases += [partial(model_outcome, component, plan) for component, plan in TRAINED.items()]
    cases.append(partial(model_outcome, "language_model", Plan("sequence", 6, 2), tied=False))
    agree(cases, 2, tmp_path)


def test_three_ranks_equal_one_process(tmp_path):
    agree([partial(layers_outcome, slices, 2, plan) for slices in SLICES[3] for plan in PLANS[1:3]], 3, tmp_path)


def test_a_split_bf16_layer_is_as_close_to_fp64_as_a_whole_one(tmp_path):
    """Runs the kernels if there is a GPU, which two ranks then share. In fp32 in Triton's interpreter: within 9e-7."""
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
        # The exact gradient of the keys' biases is zero, because softmax ignores them.
        smallest = 1e-6 * max(tensor.norm().item() for tensor in shares.values())
        for name, tensor in shares.items():
            assert relative(total(found, name), tensor, smallest) < BOUND, (name, case)
        for name, tensor in whole.items():
            assert max(relative(of_rank[name], tensor, smallest) for _, of_rank in found) < BOUND, (name, case)


def by_rank(ranks: int, folder: Path, cases: Sequence[Case]) -> list[tuple[Outcome, ...]]:
    """Return, for each case, the outcomes of all ranks."""
    mp.spawn(work, (ranks, folder, cases), nprocs=ranks)
    return list(zip(*(torch.load(folder / f"{rank}.pt") for rank in range(ranks)), strict=True))


def total(found: Sequence[Outcome], name: str) -> Tensor:
    return torch.stack([shares[name] for shares, _ in found]).sum(0)


def relative(found: Tensor, expected: Tensor, smallest: float = 1e-300) -> float:
    return ((found - expected).norm() / expected.norm().clamp(min=smallest)).item()
