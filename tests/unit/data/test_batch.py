"""Collation: every token and every target is in its place."""

import numpy as np
import pytest
import torch

from ma2mba.data.batch import IGNORE, Sample, collate, target_count

K = 2


def sample(ids: list[int], supervised: list[int], frames_before: list[int]) -> Sample:
    return Sample(
        "s",
        np.array(ids, np.int32),
        np.array(supervised, bool),
        np.array(frames_before, np.int32),
        np.full((len(frames_before), 3, 4, 4), len(ids), np.uint8),
    )


def test_frames_at_start_middle_and_end():
    batch = collate([sample([5, 6, 7], [0, 1, 1], [0, 2, 2, 3])], K)
    assert batch.visual_BS.tolist() == [[0, 1, -1, -1, 2, 3, 4, 5, -1, 6, 7]]
    assert batch.ids_BS.tolist() == [[0, 0, 5, 6, 0, 0, 0, 0, 7, 0, 0]]
    expected = [IGNORE] * 11
    expected[2], expected[7] = 6, 7  # 6 is predicted from 5; 7 from the last visual token before it
    assert batch.targets_BS.tolist() == [expected]
    assert batch.supervised == 2


def test_a_supervised_first_token_has_nothing_before_it():
    alone, after_frame = sample([5, 6], [1, 1], []), sample([5, 6], [1, 1], [0])
    assert collate([alone], K).targets_BS.tolist() == [[6, IGNORE]]
    assert collate([after_frame], K).targets_BS.tolist() == [[IGNORE, 5, 6, IGNORE]]
    for one in (alone, after_frame):
        assert target_count(one.supervised_T, one.frame_positions_N) == collate([one], K).supervised


def test_rows_are_padded_on_the_right_and_frames_are_numbered_through():
    batch = collate([sample([5], [0], [1]), sample([6, 7], [0, 1], []), sample([8, 9], [0, 1], [1])], K)
    assert batch.ids_BS.tolist() == [[5, 0, 0, 0], [6, 7, 0, 0], [8, 0, 0, 9]]
    assert batch.visual_BS.tolist() == [[-1, 0, 1, -1], [-1] * 4, [-1, 2, 3, -1]]
    assert batch.targets_BS.tolist() == [[IGNORE] * 4, [7, IGNORE, IGNORE, IGNORE], [IGNORE, IGNORE, 9, IGNORE]]
    assert batch.frames.all().shape == (2, 3, 4, 4)
    assert batch.frames.all()[:, 0, 0, 0].tolist() == [1, 2]
    assert {batch.ids_BS.dtype, batch.targets_BS.dtype, batch.visual_BS.dtype} == {torch.int64}
    assert batch.frames.all().dtype == torch.uint8


def test_a_batch_without_frames():
    batch = collate([sample([5, 6], [0, 1], [])], K)
    assert batch.frames.all().shape == (0, 3, 4, 4)
    assert (batch.visual_BS == -1).all()


def test_no_sample_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        collate([], K)
