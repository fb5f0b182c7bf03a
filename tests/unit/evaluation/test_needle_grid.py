"""The grid of a needle evaluation: its options, which needle is where, and the accuracy of each cell."""

from collections import Counter

import pytest

from ma2mba.errors import UserError
from ma2mba.evaluation.needle.grid import Grid, parse_depths, parse_lengths, question_about
from ma2mba.evaluation.needle_report import needle_grid
from ma2mba.video.synthetic.movie import FPS, MARGIN
from ma2mba.video.synthetic.scenes import NEEDLES

GRID = Grid((60, 600), tuple(n / 10 for n in range(11)), 96, seed=0)


@pytest.mark.parametrize(
    ("text", "lengths"), [("60", (60,)), ("3600,60,600", (60, 600, 3600)), (" 60, 600 ", (60, 600))]
)
def test_lengths(text, lengths):
    assert parse_lengths(text) == lengths


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "'' is not a whole number"),
        ("60,1e3", "'1e3' is not a whole number"),
        ("60,-5", "'-5' is not a whole number"),
        ("60,3", "'3' is out of range"),
        ("86401", "'86401' is out of range"),
        ("9" * 5000, "is out of range"),
        ("60,60", "60 is there twice"),
    ],
)
def test_a_bad_length_is_refused_by_name_and_value(text, problem):
    with pytest.raises(UserError) as error:
        parse_lengths(text)
    assert str(error.value).startswith("--lengths ")
    assert problem in str(error.value)


@pytest.mark.parametrize(
    ("text", "depths"),
    [
        ("0:1:0.1", tuple(n / 10 for n in range(11))),
        ("0:1:0.3", (0.0, 0.3, 0.6, 0.9)),
        ("0.5:0.5:1", (0.5,)),
        ("1,0,0.5", (0.0, 0.5, 1.0)),
    ],
)
def test_depths(text, depths):
    assert parse_depths(text) == depths


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("half", "'half' is not a number"),
        ("nan", "'nan' is not a number"),
        ("0:1", "not first:last:step"),
        ("0:1:0", "the step 0 is below 0.01"),
        ("1:0:0.1", "0 is before 1"),
        ("0:1.5:0.1", "1.5 is out of range"),
        ("0:1e999999:0.1", "is out of range"),
        ("0,1.5", "1.5 is out of range"),
        ("-0.1", "-0.1 is out of range"),
        ("0.5,0.50", "0.5 is there twice"),
        (",".join(["0"] * 102), "102 depths"),
    ],
)
def test_a_bad_depth_is_refused_by_name_and_value(text, problem):
    with pytest.raises(UserError) as error:
        parse_depths(text)
    assert str(error.value).startswith("--depths ")
    assert problem in str(error.value)


def test_fewer_questions_than_depths_are_refused():
    with pytest.raises(UserError, match="--questions 10: fewer than the 11 depths"):
        Grid((60,), GRID.depths, 10, 0)


@pytest.mark.parametrize("depths", [1, 2, 3, 8, 10, 11, 12])
def test_the_questions_are_spread_evenly_over_depths_and_symbols(depths):
    grid = Grid(GRID.lengths, tuple(n / 12 for n in range(depths)), 96, seed=0)
    for length in grid.lengths:
        places = [place for place in grid.places() if place.length == length]
        assert len(places) == 96
        assert Counter(place.kind for place in places) == dict.fromkeys(NEEDLES, 12)
        assert set(Counter(place.depth for place in places).values()) <= {96 // depths, -(-96 // depths)}
        for depth in grid.depths:
            assert {place.kind for place in places if place.depth == depth} == set(NEEDLES)


@pytest.mark.parametrize("length", [4, 60, 3600])
def test_a_depth_is_a_time_within_the_margins(length):
    grid = Grid((length,), (0.0, 0.5, 1.0), 24, seed=3)
    for place in grid.places():
        needle = place.needle(grid)
        assert needle.kind == place.kind
        assert needle.seconds, "a sampled second shows it"
        if place.depth == 0:
            assert needle.first == MARGIN * FPS
        if place.depth == 1:
            assert needle.stop == (length - MARGIN) * FPS
        if place.depth == 0.5:
            assert abs((needle.first + needle.stop) / 2 - length * FPS / 2) <= 1


def test_another_seed_gives_other_needles():
    other = Grid(GRID.lengths, GRID.depths, GRID.questions, seed=1)
    same = Grid(GRID.lengths, GRID.depths, GRID.questions, seed=0)
    needles, others, again = ([place.needle(grid) for place in grid.places()] for grid in (GRID, other, same))
    assert needles == again
    assert all(a != b for a, b in zip(needles, others, strict=True))


def test_options_are_shown_in_another_order_for_each_question(tmp_path):
    items = [question_about(place, GRID, tmp_path / "a.mp4") for place in GRID.places()]
    assert len({item.options for item in items}) > 90
    assert all(item.options[item.gold_index] == item.gold and f". {item.gold}." in item.prompt for item in items)
    hidden = Grid(GRID.lengths, GRID.depths, GRID.questions, 0, hide_options=True)
    assert {question_about(place, hidden, tmp_path / "a.mp4").prompt for place in hidden.places()} == {
        "Which symbol appeared?"
    }


def test_the_accuracy_of_each_cell():
    options = {"needle_lengths": [60, 600], "needle_depths": [0.0, 1.0]}
    scores = [(60, 0.0, 1), (60, 0.0, 0), (60, 1.0, 1), (600, 1.0, 0)]
    records = [{"length": a, "depth": b, "score": float(score), "chance": 0.125} for a, b, score in scores]
    records.append({"length": 600, "depth": 0.0, "error": "damaged"})
    grid = needle_grid(records, options)
    assert grid["accuracy"] == [[0.5, 1.0], [None, 0.0]]
    assert grid["questions"] == [[2, 1], [0, 1]]
    assert grid["accuracy_by_length"] == [2 / 3, 0.0]
    assert grid["questions_by_length"] == [3, 1]
    assert grid["chance"] == 0.125
