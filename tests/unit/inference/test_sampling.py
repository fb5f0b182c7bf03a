"""Which token is drawn: the filters against transformers, the draws against the distribution. B rows, V vocabulary."""

import math

import pytest
import torch
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from ma2mba.errors import UserError
from ma2mba.inference.choice import choose, filtered
from ma2mba.inference.sampling import Sampling

V = 60


def logits_BV(kind: str, rows: int = 50) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(kind))
    values_BV = 4 * torch.randn(rows, V, generator=generator)
    if kind == "ties":
        values_BV = values_BV.div(4).round()
    elif kind == "equal":
        values_BV = torch.ones(rows, V)
    elif kind == "impossible":
        values_BV[torch.rand(rows, V, generator=generator) < 0.7] = -math.inf
        values_BV[:, 7] = 1.0
    elif kind == "one":
        values_BV = torch.full((rows, V), -math.inf)
        values_BV[:, 5] = -3.0
    return values_BV


def of_transformers(values_BV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Apply the processors in the order of `GenerationMixin._get_logits_processor`."""
    ids = torch.zeros(len(values_BV), 1, dtype=torch.long)
    values_BV = TemperatureLogitsWarper(float(sampling.heat))(ids, values_BV)
    if sampling.top_k:
        values_BV = TopKLogitsWarper(sampling.top_k)(ids, values_BV)
    if sampling.top_p < 1:
        values_BV = TopPLogitsWarper(sampling.top_p)(ids, values_BV)
    if sampling.min_p:
        values_BV = MinPLogitsWarper(sampling.min_p)(ids, values_BV)
    return values_BV


FILTERS = [
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 1000},
    {"top_p": 0.9},
    {"top_p": 0.3},
    {"top_p": 1e-6},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_k": 20, "top_p": 0.8, "min_p": 0.02},
]


@pytest.mark.parametrize("temperature", [0.05, 0.7, 1.0, 3.0, 1000.0])
@pytest.mark.parametrize("options", FILTERS, ids=str)
@pytest.mark.parametrize("kind", ["random", "ties", "equal", "impossible", "one"])
def test_the_filters_keep_what_transformers_keeps(kind, options, temperature):
    sampling = Sampling(temperature=temperature, **options)
    values_BV = logits_BV(kind)
    ours_BV, theirs_BV = filtered(values_BV, [sampling] * len(values_BV)), of_transformers(values_BV, sampling)
    assert torch.equal(ours_BV.isfinite(), theirs_BV.isfinite())
    torch.testing.assert_close(ours_BV.softmax(-1), theirs_BV.softmax(-1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-12, 1e12, 1e300])
@pytest.mark.parametrize("options", [{}, *FILTERS], ids=str)
def test_an_extreme_temperature_gives_a_distribution(options, temperature):
    sampling = Sampling(temperature=temperature, **options)
    values_BV = logits_BV("impossible")
    probabilities_BV = filtered(values_BV, [sampling] * len(values_BV)).softmax(-1)
    assert probabilities_BV.isfinite().all()
    assert not probabilities_BV[values_BV == -math.inf].any()
    if temperature < 1:
        assert torch.equal(
            choose(values_BV, [sampling] * len(values_BV), [sampling.draws() for _ in values_BV]), values_BV.argmax(-1)
        )


def test_tokens_are_drawn_as_often_as_their_probability_says():
    n = 20_000
    values_V = torch.tensor([2.0, 1.0, -math.inf, 0.0, 0.0, -1.0, 3.0, -math.inf])
    for options in ({"temperature": 1.0}, {"temperature": 0.5}, {"top_k": 3}, {"min_p": 0.2}):
        sampling = Sampling(**options, seed=5)
        draws = sampling.draws()
        drawn = torch.cat(
            [choose(values_V[None].expand(100, -1), [sampling] * 100, [draws] * 100) for _ in range(n // 100)]
        )
        expected_V = filtered(values_V[None], [sampling]).softmax(-1)[0]
        counted_V = drawn.bincount(minlength=len(values_V)) / n
        assert not counted_V[expected_V == 0].any()
        bound_V = 4.5 * (expected_V * (1 - expected_V) / n).sqrt()
        assert ((counted_V - expected_V).abs() <= bound_V).all(), (counted_V, expected_V)


def test_draws_at_the_ends_choose_possible_tokens():
    class End:
        def __init__(self, number):
            self.number = number

        def next(self):
            return self.number

    values_BV = torch.tensor([[-math.inf, 1.0, 2.0, -math.inf]]).expand(2, -1)
    ends = [End(0.0), End(1 - 2**-32)]
    assert choose(values_BV, [Sampling(temperature=1.0)] * 2, ends).tolist() == [1, 2]


@pytest.mark.parametrize("kind", ["random", "ties"])
def test_a_row_gets_the_same_token_alone_and_in_a_batch(kind):
    values_BV = logits_BV(kind)
    sampling = Sampling(temperature=1.3, top_p=0.9, top_k=30, min_p=0.01, seed=11)
    together = choose(values_BV, [sampling] * len(values_BV), [sampling.draws() for _ in values_BV])
    alone = torch.cat([choose(row_V[None], [sampling], [sampling.draws()]) for row_V in values_BV])
    assert torch.equal(together, alone)
    assert len(together.unique()) > 3


def test_rows_of_a_batch_may_have_different_options():
    """Each row gets the token that it gets alone, and takes a draw only if it has a temperature."""
    values_BV = logits_BV("random", rows=4 * len(FILTERS))
    heats = [{"temperature": 0.0}, {"temperature": 0.4}, {}, {"temperature": 2.0}]
    pairs = [heat | options for options in FILTERS for heat in heats]
    mixed = [Sampling(**pair, seed=seed) for seed, pair in enumerate(pairs)]
    draws = [sampling.draws() for sampling in mixed]
    together = choose(values_BV, mixed, draws)
    for row, sampling in enumerate(mixed):
        own = sampling.draws()
        assert together[row] == choose(values_BV[row, None], [sampling], [own])[0], sampling
        assert draws[row].next() == own.next()
    assert (together != values_BV.argmax(-1)).sum() > 3


def test_greedy_is_the_default_and_filters_imply_a_temperature():
    assert Sampling().heat == 0
    assert Sampling(seed=3).heat == 0
    assert Sampling(top_p=0.9).heat == Sampling(top_k=4).heat == Sampling(min_p=0.1).heat == 1
    assert Sampling(temperature=0, top_k=4).heat == 0
    values_BV = logits_BV("random")
    assert torch.equal(choose(values_BV, [Sampling()] * len(values_BV), []), values_BV.argmax(-1))


def test_without_a_seed_each_sequence_draws_by_itself():
    draws = [Sampling(temperature=1.0).draws() for _ in range(5)]
    assert len({own.seed for own in draws}) == 5
    again = [Sampling(temperature=1.0, seed=own.seed).draws() for own in draws]
    assert [own.next() for own in draws] == [own.next() for own in again]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": -1.0}, "temperature: -1.0 is out of range"),
        ({"temperature": math.nan}, "temperature: nan"),
        ({"temperature": math.inf}, "temperature: inf"),
        ({"top_p": 0.0}, "top_p: 0.0"),
        ({"top_p": 1.01}, "top_p: 1.01"),
        ({"top_p": math.nan}, "top_p: nan"),
        ({"top_k": -1}, "top_k: -1"),
        ({"min_p": 1.5}, "min_p: 1.5"),
        ({"min_p": math.nan}, "min_p: nan"),
        ({"seed": -1}, "seed: -1"),
        ({"seed": 1 << 64}, "seed: 18446744073709551616"),
        ({"max_tokens": 0}, "max_tokens: 0"),
        ({"stop": ["a", ""]}, "stop: "),
        ({"stop": ""}, "stop: "),
    ],
)
def test_options_out_of_range_are_refused_by_name(options, said):
    with pytest.raises(UserError, match=said):
        Sampling(**options)
