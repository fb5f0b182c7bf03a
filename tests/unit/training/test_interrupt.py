"""A signal to any rank stops all of them, and none waits for one that has left."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore

from ma2mba.training.agreement import ARRIVED, ASKED, Agreement, LostRank
from ma2mba.training.interrupt import Interruption, Stopped

MICRO_BATCHES, CHUNKS = 3, 2
REDUCE = "reduce"


class Meeting:
    """Two ranks as threads: whoever comes waits for the other, and both must have come for the same."""

    def __init__(self):
        self.votes = {}
        self.barrier = threading.Barrier(2, timeout=10)

    def all(self, rank, vote):
        self.votes[rank] = vote
        self.barrier.wait()
        votes = [self.votes[0], self.votes[1]]
        self.barrier.wait()
        return votes


class Rank:
    """`at` is called with (step, micro-batch, chunk) where a chunk begins, the last one's end being chunk CHUNKS."""

    def __init__(self, number, meeting, agreement, at):
        self.number, self.meeting, self.agreement, self.at = number, meeting, agreement, at
        self.interruption, self.begun = Interruption(), None

    def any_rank(self, asks):
        votes = self.meeting.all(self.number, asks)
        assert REDUCE not in votes, "the other rank reduces gradients"
        return any(votes)

    def train(self, steps=2):
        """Where it came to, and what stopped it."""
        try:
            for step in range(steps):
                for batch, breaks in self.interruption.checked(iter(range(MICRO_BATCHES)), MICRO_BATCHES, self):
                    self._micro_batch(step, batch, breaks)
        except Stopped as stopped:
            return self.begun, str(stopped)
        return self.begun, None

    def _micro_batch(self, step, batch, breaks):
        for chunk in range(CHUNKS):
            self._reach(step, batch, chunk)
            if breaks:
                breaks.chunk()
        if breaks and breaks.end:
            assert batch == MICRO_BATCHES - 1
            self._reach(step, batch, CHUNKS)
            breaks.end()
        if batch == MICRO_BATCHES - 1 or breaks is None:
            assert self.meeting.all(self.number, REDUCE) == [REDUCE, REDUCE]

    def _reach(self, *place):
        self.begun = place
        self.at(self, place)


def run(agreements, *at):
    meeting = Meeting()
    ranks = [Rank(number, meeting, *pair) for number, pair in enumerate(zip(agreements, at, strict=True))]
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(Rank.train, ranks))


def signals(place, when):
    """Signalled there, not before `when`."""

    def at(rank, reached):
        if reached == place:
            assert when.wait(10)
            rank.interruption.name = "SIGTERM"

    return at


def waits(place, there, store):
    """Says that it is there, and does not get past before the other rank has told the store."""

    def at(rank, reached):
        while reached == place and not store.add(ASKED, 0):
            there.set()
            time.sleep(0.001)

    return at


def goes_on(rank, reached):
    pass


LAST = MICRO_BATCHES - 1


@pytest.mark.parametrize(
    ("signalled", "waiting"),
    [
        ((0, 0, 0), (0, 0, 1)),  # both in their first micro-batch
        ((0, 1, 1), (0, LAST, 1)),  # the other is ahead, in its last
        ((1, LAST, 1), (1, 0, 0)),  # the other is behind
    ],
)
def test_ranks_leave_a_step_between_two_chunks(signalled, waiting):
    store, there = HashStore(), threading.Event()
    results = run([Agreement(store, 2), Agreement(store, 2)], signals(signalled, there), waits(waiting, there, store))
    assert results == [(signalled, "SIGTERM"), (waiting, "signal to another rank")]


def test_a_rank_that_waits_for_the_others_leaves_with_the_one_that_is_signalled():
    store, arriving = HashStore(), threading.Event()

    def first(rank, reached):
        if reached == (0, LAST, CHUNKS):
            arriving.set()

    results = run([Agreement(store, 2), Agreement(store, 2)], first, signals((0, 0, 1), arriving))
    assert results == [((0, LAST, CHUNKS), "signal to another rank"), ((0, 0, 1), "SIGTERM")]


def test_a_rank_that_is_signalled_while_it_waits_takes_the_others_along():
    class Signalled(Agreement):
        def arrive(self, asks):
            assert there.wait(10)
            return super().arrive(lambda: True)

    store, there = HashStore(), threading.Event()
    results = run([Signalled(store, 2), Agreement(store, 2)], goes_on, waits((0, LAST, 0), there, store))
    assert results == [((0, LAST, CHUNKS), "signal to another rank"), ((0, LAST, 0), "signal to another rank")]


def test_a_rank_that_waits_learns_that_another_has_failed():
    store, arriving = HashStore(), threading.Event()
    agreements = [Agreement(store, 2), Agreement(store, 2)]

    def first(rank, reached):
        if reached == (0, LAST, CHUNKS):
            arriving.set()

    def second(rank, reached):
        if reached == (0, 0, 1):
            assert arriving.wait(10)
            agreements[1].fail()
            raise ArithmeticError("its own fault")

    with pytest.raises(LostRank):
        run(agreements, first, second)


def test_a_signal_after_the_last_look_lets_the_step_end():
    store, arriving = HashStore(), threading.Event()

    def second(rank, reached):
        if reached == (0, LAST, CHUNKS):
            arriving.set()

    first, other = run([Agreement(store, 2), Agreement(store, 2)], signals((0, LAST, CHUNKS), arriving), second)
    assert first == ((0, LAST, CHUNKS), "SIGTERM")  # it left where step 1 would begin
    assert other[1] == "signal to another rank"
    assert store.add(ARRIVED, 0) in (2, 3)  # all in step 0; the other perhaps in step 1 too


def test_without_a_signal_all_steps_end():
    store = HashStore()
    assert run([Agreement(store, 2), Agreement(store, 2)], goes_on, goes_on) == [((1, LAST, CHUNKS), None)] * 2
    assert run([None, None], goes_on, goes_on) == [((1, LAST, CHUNKS - 1), None)] * 2


@pytest.mark.parametrize("place", [(0, 0, 0), (0, LAST, 1)])
def test_ranks_that_meet_in_every_micro_batch_stop_before_one(place):
    now = threading.Event()
    now.set()
    first, second = run([None, None], signals(place, now), goes_on)
    assert [why for _, why in (first, second)] == ["SIGTERM", "signal to another rank"]
    assert first[0] == second[0]


def test_a_process_alone_needs_no_store():
    alone = Agreement(None, 1)
    assert not alone.given_up(False)
    assert alone.given_up(True)
    assert alone.arrive(lambda: True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_noted_and_afterwards_is_what_it_was(number):
    before = signal.getsignal(number)
    with Interruption() as interruption:
        assert interruption.name is None
        os.kill(os.getpid(), number)
        assert interruption.name == number.name
    assert signal.getsignal(number) == before
