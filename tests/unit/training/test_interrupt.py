"""A signal to any rank stops all of them, and none waits for one that has left."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ma2mba.training.interrupt import Interruption, Stopped

MICRO_BATCHES = 4
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
    def __init__(self, number, meeting, reduces_late):
        self.number, self.meeting, self.reduces_late = number, meeting, reduces_late

    def any_rank(self, asks):
        votes = self.meeting.all(self.number, asks)
        assert REDUCE not in votes, "the other rank reduces gradients"
        return any(votes)

    def train(self, signalled_at, steps=2):
        """The last (step, micro-batch) that was begun, and what stopped it."""
        interruption, begun = Interruption(), None
        for step in range(steps):
            batches = interruption.checked(iter(range(MICRO_BATCHES)), MICRO_BATCHES, self)
            try:
                for batch in batches:
                    begun = (step, batch)
                    if begun == signalled_at:
                        interruption.name = "SIGTERM"
                    if batch == MICRO_BATCHES - 1 or not self.reduces_late:
                        assert self.meeting.all(self.number, REDUCE) == [REDUCE, REDUCE]
            except Stopped as stopped:
                return begun, str(stopped)
        return begun, None


@pytest.mark.parametrize(
    ("reduces_late", "signalled_at", "reached"),
    [
        (True, (0, 0), [(0, 0), (0, 2)]),  # the other goes on until it would have to wait
        (True, (0, 2), [(0, 2), (0, 2)]),
        (True, (0, 3), [(0, 3), (1, 2)]),  # the step is finished, the next one given up
        (False, (0, 0), [(0, 0), (0, 0)]),
        (False, (0, 3), [(0, 3), (0, 3)]),
        (True, None, [(1, 3), (1, 3)]),
    ],
)
def test_all_ranks_stop_where_none_waits(reduces_late, signalled_at, reached):
    meeting = Meeting()
    ranks = [Rank(number, meeting, reduces_late) for number in range(2)]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(Rank.train, ranks, [signalled_at, None]))
    assert [begun for begun, _ in results] == reached
    asked = signalled_at is not None
    assert [why for _, why in results] == (["SIGTERM", "signal to another rank"] if asked else [None, None])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_noted_and_afterwards_is_what_it_was(number):
    before = signal.getsignal(number)
    with Interruption() as interruption:
        assert interruption.name is None
        os.kill(os.getpid(), number)
        assert interruption.name == number.name
    assert signal.getsignal(number) == before
