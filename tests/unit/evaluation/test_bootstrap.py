"""The interval is the one that numpy gives directly."""

import numpy as np
import pytest

from ma2mba.evaluation import bootstrap
from ma2mba.evaluation.bootstrap import interval


def questions(videos: int, number: int):
    random = np.random.default_rng(7)
    names = [f"v{random.integers(videos):02d}" for _ in range(number)]
    return random.integers(0, 2, number).tolist(), names, [f"t{random.integers(3)}" for _ in range(number)]


def drawn(names: list[str]) -> np.ndarray:
    videos = sorted(set(names))
    return np.random.default_rng(0).integers(0, len(videos), (bootstrap.DRAWS, len(videos)))


@pytest.mark.parametrize("at_once", [1999, 7])
def test_videos_are_drawn_with_all_their_questions(at_once, monkeypatch):
    monkeypatch.setattr(bootstrap, "AT_ONCE", at_once)
    scores, names, _ = questions(11, 60)
    of_video = [
        [score for score, name in zip(scores, names, strict=True) if name == video] for video in sorted(set(names))
    ]
    means = [np.mean([score for video in draw for score in of_video[video]]) for draw in drawn(names)]
    assert interval(scores, names) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=1e-6)


def test_the_mean_over_tasks_leaves_out_a_task_that_was_not_drawn():
    scores, names, tasks = questions(5, 12)
    videos = sorted(set(names))
    rows = list(zip(scores, names, tasks, strict=True))
    means = []
    for draw in drawn(names):
        by_task: dict[str, list[int]] = {}
        for video in draw:
            for score, name, task in rows:
                if name == videos[video]:
                    by_task.setdefault(task, []).append(score)
        means.append(np.mean([np.mean(group) for group in by_task.values()]))
    assert interval(scores, names, tasks) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=1e-6)


def test_the_order_of_the_questions_does_not_matter():
    scores, names, _ = questions(11, 60)
    assert interval(scores[::-1], names[::-1]) == interval(scores, names)


def test_one_video_has_no_interval():
    assert interval([1.0, 0.0], ["a", "a"]) is None
    assert interval([], []) is None
