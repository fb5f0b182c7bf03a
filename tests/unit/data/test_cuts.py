"""Cuts into chunks and rank slices. K tokens of a frame."""

import itertools

import pytest
import torch

from ma2mba.data.cuts import cuts, rank_cuts

K = 4
VISUAL_S = torch.tensor([-1, -1, 0, 1, 2, 3, -1, 4, 5, 6, 7, 8, 9, 10, 11, -1])


@pytest.mark.parametrize("limit", range(1, 20))
def test_chunks_cover_everything_and_cut_no_frame_that_fits(limit):
    places = cuts(VISUAL_S[None], limit, K)
    assert (places[0], places[-1]) == (0, len(VISUAL_S))
    assert all(0 < stop - start <= limit for start, stop in itertools.pairwise(places))
    if limit >= K:
        assert all(VISUAL_S[at] == -1 or VISUAL_S[at] % K == 0 for at in places[:-1])


def test_rows_are_cut_where_none_is_inside_a_frame():
    shifted_S = torch.cat([VISUAL_S[:1], VISUAL_S[:-1]])
    places = cuts(torch.stack([VISUAL_S, shifted_S]), 6, K)
    assert all(0 < stop - start <= 6 for start, stop in itertools.pairwise(places))
    assert places[1] == 2  # at 6 the shifted row is inside its first frame, at 2 neither is


@pytest.mark.parametrize("ranks", range(1, 20))
def test_rank_slices_cover_a_chunk_nearly_evenly_and_cut_no_frame(ranks):
    places = rank_cuts(VISUAL_S[None], ranks, K)
    assert (len(places), places[0], places[-1]) == (ranks + 1, 0, len(VISUAL_S))
    assert places == sorted(places)
    assert all(abs(at - len(VISUAL_S) * i / ranks) <= K / 2 + 1 for i, at in enumerate(places))
    assert all(VISUAL_S[at] == -1 or VISUAL_S[at] % K == 0 for at in places[:-1])


def test_rank_slices_are_even_where_every_place_is_inside_a_frame_of_some_row():
    shifted_S = torch.cat([VISUAL_S[2:], VISUAL_S[:2]])
    assert rank_cuts(torch.stack([VISUAL_S, shifted_S])[:, 8:], 2, K) == [0, 4, 8]


def test_a_chunk_of_fewer_tokens_than_ranks():
    assert rank_cuts(torch.full((1, 2), -1), 4, K) == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("limit", range(1, 20))
def test_even_chunks_have_equal_lengths_except_the_first_and_the_last(limit):
    places = cuts(VISUAL_S[None], limit, K, even=True)
    lengths = [stop - start for start, stop in itertools.pairwise(places)]
    assert (places[0], places[-1]) == (0, len(VISUAL_S))
    assert set(lengths[1:-1]) <= {limit}
    assert all(0 < length <= limit for length in lengths)
