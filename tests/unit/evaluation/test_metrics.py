"""What counts as right, and how it is summed up."""

import pytest

from ma2mba.evaluation.metrics import summarise


def test_means_are_per_task_and_over_all():
    records = [
        {"task": "b", "correct": True, "chance": 0.5},
        {"task": "a", "correct": False, "chance": 0.25},
        {"task": "b", "correct": False, "chance": 0.5},
        {"task": "b", "correct": True, "chance": 0.2},
    ]
    assert summarise(records) == {
        "n": 4,
        "accuracy": 0.5,
        "chance": pytest.approx(0.3625),
        "tasks": {
            "a": {"n": 1, "accuracy": 0.0, "chance": 0.25},
            "b": {"n": 3, "accuracy": pytest.approx(2 / 3), "chance": pytest.approx(0.4)},
        },
    }


def test_questions_that_were_not_answered_do_not_count():
    records = [
        {"task": "a", "correct": True, "chance": 0.5},
        {"task": "a", "correct": False, "chance": 0.5, "error": "damaged"},
        {"task": "b", "correct": False, "chance": 0.5, "error": "damaged"},
    ]
    assert summarise(records) == {
        "n": 1,
        "accuracy": 1.0,
        "chance": 0.5,
        "tasks": {
            "a": {"n": 1, "accuracy": 1.0, "chance": 0.5},
            "b": {"n": 0, "accuracy": None, "chance": None},
        },
    }
