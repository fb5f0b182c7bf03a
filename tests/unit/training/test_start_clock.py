"""The seconds of a start, by part, add up to the time since the command began."""

import time

import pytest

from ma2mba.training import start_clock
from ma2mba.training.start_clock import BEGAN, StartClock, announced, command_began, describe


@pytest.fixture
def now(monkeypatch):
    """Set the time that the clock reads."""

    def at(seconds):
        monkeypatch.setattr(start_clock.time, "time", lambda: seconds)

    return at


def test_the_parts_of_two_clocks_add_up(now):
    outer, inner = StartClock(), StartClock()
    outer.enter("launch", 100.0)
    for clock, seconds, part in ((outer, 103, "imports"), (inner, 104, "weights"), (inner, 110.5, "imports")):
        now(float(seconds))
        clock.enter(part)
    now(112.0)
    outer.enter("first step")
    outer.join(inner)
    now(120.0)
    seconds = outer.finish()
    assert seconds == {"launch": 3.0, "imports": 2.5, "weights": 6.5, "first step": 8.0, "total": 20.0}
    assert list(seconds) == ["launch", "imports", "weights", "first step", "total"]
    assert describe(seconds) == (
        "the first step was done 20.0 s after the command began: launch 3.0, imports 2.5, weights 6.5, first step 8.0"
    )


def test_a_clock_that_is_set_back_gives_no_negative_seconds(now):
    clock = StartClock()
    clock.enter("launch", 100.0)
    now(50.0)
    assert clock.finish() == {"launch": 0.0, "total": 0.0}


def test_a_rank_begins_with_the_command_that_started_it():
    told = announced({"PATH": "/bin"})
    assert told["PATH"] == "/bin"
    assert command_began(told) == float(told[BEGAN]) <= time.time()
    assert command_began({BEGAN: "1000.5"}) == 1000.5
    own = command_began({})
    assert command_began({BEGAN: "soon"}) == command_began({BEGAN: repr(time.time() + 60)}) == own
