"""`Plan` owns the rule which plans are possible; recipes, the planner and the engine ask it."""

import pytest

from ma2mba.magc import Plan


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        (
            {"layers": 3},
            "group_layers=1: CUDA graphs need all 3 layers in one group. Use graphs=False or ",
        ),
        ({"ranks": 2}, "ranks=2: CUDA graphs cannot capture the exchange between ranks. Use graphs=False or ranks=1"),
        ({"moves_weights": True}, "moves_weights=True: CUDA graphs read the weights at fixed addresses. Use "),
        ({"nesting": "layer"}, "nesting='layer': CUDA graphs capture sequence nesting only. Use "),
    ],
)
def test_graphs_are_incompatible_with_one_setting(setting, text):
    assert Plan.problems(graphs=True) == []
    (problem,) = Plan.problems(graphs=True, **setting)
    assert str(problem).startswith(f"graphs=True is incompatible with {text}")


def test_all_problems_are_found_together():
    assert len(Plan.problems(nesting="both", chunk_tokens=0, memo_chunks=True)) == 3
    assert len(Plan(graphs=True).conflicts(layers=2, ranks=2, moves_weights=True)) == 3
    assert len(Plan.problems(memo_chunks=1, graphs=True, nesting="layer", layers=2)) == 5


def test_a_plan_allows_a_change_that_has_no_problem():
    whole, grouped = Plan(group_layers=4), Plan(group_layers=2)
    assert whole.allows(4, memo_chunks=1)
    assert whole.allows(4, graphs=True)
    assert grouped.allows(4)
    assert not grouped.allows(4, graphs=True)
    assert not whole.allows(4, memo_chunks=1, graphs=True)


def test_an_unknown_field_is_an_error():
    with pytest.raises(TypeError, match=r"graph: not a field of Plan\. Use nesting, "):
        Plan.problems(graph=True)
