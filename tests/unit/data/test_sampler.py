"""The order of samples and how a step is dealt out."""

import itertools

import numpy as np
import pytest

from ma2mba.data.sampler import LENGTH_MIXING, Position, Sampler

LENGTHS = np.random.default_rng(1).integers(10, 5000, 100)


def sampler(ranks=1, order="shuffled", count=100, micro_batch=2, seed=7, passes=1) -> Sampler:
    lengths = LENGTHS[:count]
    return Sampler(
        lengths,
        lengths // 3,
        lengths // 9,
        global_batch=24,
        micro_batch=micro_batch,
        ranks=ranks,
        seed=seed,
        order=order,
        passes=passes,
    )


def plans(made: Sampler, steps: int, at: Position = Position()):
    return list(itertools.islice(made.plans(at), steps))


def flat(plan) -> list[int]:
    return [i for rank in plan.micro_batches for micro in rank for i in micro]


@pytest.mark.parametrize("order", ["shuffled", "length"])
def test_a_step_has_the_same_samples_and_micro_batches_on_1_2_and_3_ranks(order):
    alone, *others = (plans(sampler(ranks, order), 12) for ranks in (1, 2, 3))
    for other in others:
        for a, b in zip(alone, other, strict=True):
            assert sorted(flat(a)) == sorted(flat(b))
            assert {tuple(m) for rank in a.micro_batches for m in rank} == {
                tuple(m) for rank in b.micro_batches for m in rank
            }
            assert (a.targets, a.tokens, a.frames, a.after) == (b.targets, b.tokens, b.frames, b.after)


def test_ranks_have_as_many_micro_batches_and_nearly_as_many_tokens():
    worst = 0.0
    for plan in plans(sampler(ranks=3, micro_batch=1), 12):
        assert {len(rank) for rank in plan.micro_batches} == {8}
        tokens = [sum(LENGTHS[i] for micro in rank for i in micro) for rank in plan.micro_batches]
        worst = max(worst, max(tokens) / min(tokens) - 1)
    assert worst < 0.08  # measured 0.051; dealing without regard to length gives 0.6


def test_a_micro_batch_has_samples_of_similar_length():
    plan = sampler().plan(Position())
    ranked = sorted(flat(plan), key=lambda i: -LENGTHS[i])
    assert {tuple(micro) for micro in plan.micro_batches[0]} == set(zip(ranked[::2], ranked[1::2], strict=True))


def test_an_epoch_uses_every_sample_once_and_fills_its_last_batch_from_its_start():
    made = sampler()
    epoch = plans(made, made.steps)
    assert len(epoch) == 5  # 100 samples in batches of 24
    used = np.bincount([i for plan in epoch for i in flat(plan)], minlength=100)
    assert used.min() == 1
    assert set(np.flatnonzero(used == 2)) == set(made.epoch_order(0)[:20])
    assert epoch[-1].after == Position(1, 0)


def test_fewer_samples_than_a_batch():
    plan = sampler(count=10).plan(Position())
    assert sorted(np.bincount(flat(plan), minlength=10)) == [2] * 6 + [3] * 4
    assert plan.after == Position(1, 0)


def test_going_on_from_any_position_is_as_if_nothing_had_happened():
    undisturbed = plans(sampler(ranks=2), 11)
    for step in range(1, 11):
        assert plans(sampler(ranks=2), 11 - step, undisturbed[step - 1].after) == undisturbed[step:]


def test_seeds_and_epochs_differ():
    first = sampler().epoch_order(0).tolist()
    assert first != sampler().epoch_order(1).tolist()
    assert first != sampler(seed=8).epoch_order(0).tolist()


def test_order_length_goes_from_short_to_long_mixing_similar_lengths():
    lengths = LENGTHS[sampler(order="length").epoch_order(0)]
    assert (np.diff(lengths) < 0).any()
    longest_before = np.maximum.accumulate(lengths)
    assert (longest_before < LENGTH_MIXING * lengths).all()


def test_order_length_is_one_way_from_short_to_long_over_all_passes():
    made = sampler(order="length", passes=3)
    assert (made.steps, sampler(passes=3).steps) == (13, 15)  # 300 in batches of 24; 100 in batches of 24, thrice
    order = made.epoch_order(0)
    assert set(np.bincount(order)) == {3}
    lengths = LENGTHS[order]
    assert (np.maximum.accumulate(lengths) < LENGTH_MIXING * lengths).all()


def test_tokens_until_a_step_are_exact_with_order_length():
    made = sampler(order="length", passes=2)
    assert made.tokens_until(5) == sum(plan.tokens for plan in plans(made, 5))
    assert sampler().tokens_until(5) == int(LENGTHS.mean() * 120)


def test_order_length_does_not_repeat_a_sample_in_a_batch_of_equals():
    made = Sampler(np.full(50, 9), np.ones(50), np.zeros(50), global_batch=10, micro_batch=5, order="length", passes=8)
    worst = max(np.bincount(flat(plan)).max() for plan in plans(made, made.steps))
    assert worst <= 4  # of 10; copies side by side would give 8


def test_totals_are_those_of_the_samples():
    plan = sampler(ranks=2).plan(Position(3, 24))
    chosen = flat(plan)
    assert plan.tokens == LENGTHS[chosen].sum()
    assert plan.targets == (LENGTHS[chosen] // 3).sum()
    assert (plan.frames, plan.epoch) == ((LENGTHS[chosen] // 9).sum(), 3)


def test_a_batch_that_cannot_be_shared_out_is_refused():
    with pytest.raises(ValueError, match="24 is not a multiple of micro_batch 2 \\* 5"):
        sampler(ranks=5)
