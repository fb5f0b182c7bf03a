"""A signal to any rank stops all ranks, and no rank waits for a rank that has left.

Ranks are threads here. In place of DeepSpeed's collectives and the layers' exchanges, each rank notes them in order.
All ranks must begin the same ones, whether a rank waits inside (on a CPU) or runs ahead (on a GPU).
"""

import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore

from ma2mba.training.faults.signals import SignalListener
from ma2mba.training.faults.stop_points import Stopped, StopPoints
from ma2mba.training.faults.stop_vote import LostRank, StopVote

STEPS, MICRO_BATCHES = 2, 3
LAST = MICRO_BATCHES - 1
FORWARD, BACKWARD, END = (0, 1), (2, 3), 4
"""The chunks of a micro-batch, and the end of its backward."""
ANOTHER = "signal to another rank"
STAGES = pytest.mark.parametrize("stage", [1, 2, 3])


class Job:
    """One rank for each function `at`; each `shared` ranks see the same sequences.

    `at[rank]` is called with the rank and the place that it reaches: (step, micro-batch, chunk).
    """

    def __init__(self, stage, *at, shared=1, waits=True):
        self.stage, self.shared, self.waits, store = stage, shared, waits, HashStore()
        group = lambda n: n // shared if shared > 1 else None  # noqa: E731
        self.ranks = [Rank(self, n, StopVote(store, len(at), group(n), n % shared), at[n]) for n in range(len(at))]
        self.everybody = threading.Barrier(len(at), timeout=20)
        self.groups = [threading.Barrier(shared, timeout=20) for _ in range(len(at) // shared)]

    def run(self):
        """Return the last place of each rank, and the message of Stopped."""
        with ThreadPoolExecutor(len(self.ranks)) as pool:
            results = list(pool.map(Rank.train, self.ranks))
        for rank in self.ranks:
            assert rank.collectives == self.ranks[0].collectives
            first = self.ranks[rank.number // self.shared * self.shared]
            assert rank.exchanges == first.exchanges
        return results


class Rank:
    def __init__(self, job, number, vote, at):
        self.job, self.number, self.vote, self.at = job, number, vote, at
        self.stop_points, self.place = StopPoints(vote, job.stage), None
        self.collectives, self.exchanges = [], []

    def train(self):
        try:
            for step in range(STEPS):
                for batch in range(MICRO_BATCHES):
                    self.stop_points.before_micro_batch(last=batch == LAST)
                    self._micro_batch(step, batch)
                self.job.everybody.wait()
        except Stopped as stopped:
            return self.place, str(stopped)
        return self.place, None

    def _micro_batch(self, step, batch):
        points = self.stop_points
        for chunks, before in ((FORWARD, points.before_forward), (BACKWARD, points.before_backward)):
            before()
            if self.job.stage == 3:
                self._all("weights", step, batch)
            for chunk in chunks:
                self._reach(step, batch, chunk)
                points.before_chunk()
                self._exchange(step, batch, chunk)
        self._reach(step, batch, END)
        points.before_reduction()
        if self.job.stage > 1 or batch == LAST:
            self._all("gradients", step, batch)

    def _all(self, *what):
        self.collectives.append(what)
        if self.job.waits:
            self.job.everybody.wait()

    def _exchange(self, *place):
        self.exchanges.append(place)
        if self.job.waits:
            self.job.groups[self.number // self.job.shared].wait()

    def _reach(self, *place):
        self.place = place
        self.at(self, place)


def signals(place, when):
    """The rank receives a signal at this place, after `when` is set."""

    def at(rank, reached):
        if reached == place:
            assert when.wait(10)
            rank.stop_points.signals.name = "SIGTERM"

    return at


def waits(place, there, asked):
    """The rank sets `there` at this place, and waits until another rank has asked to stop."""

    def at(rank, reached):
        if reached == place:
            there.set()
            assert asked.wait(10)

    return at


def watched(asked):
    """Return a StopVote that sets an event when a rank asks to stop."""

    class Watched(StopVote):
        def given_up(self, asks):
            left = super().given_up(asks)
            if asks:
                asked.set()
            return left

    return Watched


def tells(place, there):
    def at(rank, reached):
        if reached == place:
            there.set()

    return at


def goes_on(rank, reached):
    pass


@pytest.fixture
def asked(monkeypatch):
    event = threading.Event()
    monkeypatch.setitem(Job.__init__.__globals__, "StopVote", watched(event))
    return event


@pytest.mark.parametrize(
    ("stage", "signalled", "waiting"),
    [
        (1, (0, 0, 0), (0, 0, 1)),  # both in their first micro-batch
        (1, (0, 1, 3), (0, LAST, 2)),  # the other is ahead, in its last
        (1, (1, LAST, 1), (1, 0, 0)),  # the other is behind
        (2, (0, 1, 1), (0, 1, 3)),
        (2, (0, 0, 3), (0, 0, 0)),
        (3, (0, 1, 0), (0, 1, 1)),
        (3, (1, LAST, 3), (1, LAST, 2)),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_ranks_leave_a_step_between_two_chunks(stage, signalled, waiting, at_once, asked):
    there = threading.Event()
    job = Job(stage, signals(signalled, there), waits(waiting, there, asked), waits=at_once)
    assert job.run() == [(signalled, "SIGTERM"), (waiting, ANOTHER)]


@pytest.mark.parametrize(("stage", "batch"), [(1, LAST), (2, 0), (3, 0)])
def test_a_rank_that_waits_for_the_others_leaves_with_the_one_that_is_signalled(stage, batch):
    arriving = threading.Event()
    last = BACKWARD[-1] if stage == 3 else 0
    job = Job(stage, tells((0, batch, END), arriving), signals((0, batch, last), arriving))
    assert job.run() == [((0, batch, END), ANOTHER), ((0, batch, last), "SIGTERM")]


def test_a_rank_that_waits_to_gather_weights_leaves_too():
    turning = threading.Event()
    job = Job(3, tells((0, 1, FORWARD[-1]), turning), signals((0, 1, 0), turning))
    assert job.run() == [((0, 1, FORWARD[-1]), ANOTHER), ((0, 1, 0), "SIGTERM")]


def test_a_rank_that_is_signalled_while_it_waits_takes_the_others_along():
    class Signalled(StopVote):
        def arrive(self, asks):
            assert there.wait(10)
            return super().arrive(lambda: looked.append(True) or True)

    def lingers(rank, reached):
        if reached == (0, LAST, 0):
            there.set()
            while len(looked) < 2:  # at its second look it has asked
                time.sleep(0.001)

    there, looked = threading.Event(), []
    job = Job(1, goes_on, lingers)
    job.ranks[0].vote.__class__ = Signalled
    assert job.run() == [((0, LAST, END), ANOTHER), ((0, LAST, 0), ANOTHER)]


def test_a_rank_that_waits_learns_that_another_has_failed():
    arriving = threading.Event()

    def fails(rank, reached):
        if reached == (0, 0, 1):
            assert arriving.wait(10)
            rank.vote.fail()
            raise ArithmeticError("its own fault")

    with pytest.raises(LostRank):
        Job(1, tells((0, LAST, END), arriving), fails).run()


def test_a_rank_of_a_group_learns_that_its_first_has_failed():
    def fails(rank, reached):
        rank.vote.fail()
        raise ArithmeticError("its own fault")

    job = Job(1, fails, goes_on, shared=2, waits=False)
    with ThreadPoolExecutor(2) as pool:
        first, other = [pool.submit(rank.train) for rank in job.ranks]
        assert isinstance(first.exception(), ArithmeticError)
        assert isinstance(other.exception(), LostRank)


@STAGES
def test_a_signal_after_the_last_look_lets_the_step_end(stage):
    arriving = threading.Event()
    job = Job(stage, signals((0, LAST, END), arriving), tells((0, LAST, END), arriving))
    first, other = job.run()
    assert first == ((0, LAST, END), "SIGTERM")  # it left where step 1 would begin
    assert other[1] == ANOTHER
    assert ("gradients", 0, LAST) in job.ranks[1].collectives


@STAGES
@pytest.mark.parametrize(("ranks", "shared"), [(1, 1), (2, 1), (2, 2), (4, 2)])
def test_without_a_signal_all_steps_end(stage, ranks, shared):
    job = Job(stage, *[goes_on] * ranks, shared=shared)
    assert job.run() == [((STEPS - 1, LAST, END), None)] * ranks


@pytest.mark.parametrize("signalled", [0, 1])
def test_ranks_that_share_a_sequence_leave_before_the_same_chunk(signalled):
    now = threading.Event()
    now.set()
    at = [goes_on, goes_on]
    at[signalled] = signals((0, 1, 2), now)
    job = Job(1, *at, shared=2, waits=False)
    places = {place for place, _ in job.run()}
    assert len(places) == 1
    assert all((0, 1, 2) <= place < (1, 0, 0) for place in places)


@STAGES
@pytest.mark.parametrize(("ranks", "shared"), [(2, 1), (2, 2), (4, 2)])
@pytest.mark.parametrize("at_once", [True, False])
def test_wherever_the_signals_come_all_leave_together(stage, ranks, shared, at_once):
    """8 signals at random moments, to one rank or to all, with fast and slow ranks: all end in the same step, after the
    same collectives."""
    lot = random.Random(f"{stage} {ranks} {shared} {at_once}")

    def at(rank, reached):
        time.sleep(pauses[rank.number] * pace.random())
        if rank.number in struck and reached >= place:
            rank.stop_points.signals.name = "SIGTERM"

    for _ in range(8):
        pace = random.Random(lot.random())
        pauses = [lot.choice([0, 0, 1e-3, 3e-3]) for _ in range(ranks)]
        struck = lot.sample(range(ranks), lot.choice([1, ranks]))
        place = (lot.randrange(STEPS), lot.randrange(MICRO_BATCHES), lot.randrange(END + 1))
        results = Job(stage, *[at] * ranks, shared=shared, waits=at_once).run()
        stopped = {why is not None for _, why in results}
        assert len(stopped) == 1
        if place[0] < STEPS - 1:  # in the last step all others may be past their last look
            assert stopped == {True}


def test_a_process_alone_needs_no_store():
    alone = StopVote(None, 1)
    assert not alone.given_up(False)
    assert alone.given_up(True)
    assert alone.arrive(lambda: True)


def test_votes_made_later_begin_anew():
    store = HashStore()
    (first, _), (again, _) = [[StopVote(store, 2) for _ in range(2)] for _ in range(2)]
    assert first.given_up(True)
    assert not again.given_up(False)


def test_a_signal_is_heard_in_backward_while_the_main_thread_waits():
    """As on a GPU: Python runs no handler while the main thread waits."""
    said, over = [], threading.Event()

    def backward():
        points.before_chunk()
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        try:
            points.before_chunk()
        except Stopped as stopped:
            said.append(str(stopped))
        over.set()

    with StopPoints(StopVote(None, 1), 1) as points:
        points.before_micro_batch(last=True)
        thread = threading.Thread(target=backward)
        thread.start()
        over.wait()
        thread.join()
    assert said == ["SIGTERM"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_noted_and_afterwards_is_what_it_was(number):
    before, files = signal.getsignal(number), os.listdir("/proc/self/fd")
    with SignalListener() as listener:
        assert listener.name is None
        os.kill(os.getpid(), number)
        assert listener.name == number.name
    assert signal.getsignal(number) == before
    assert signal.set_wakeup_fd(-1) == -1
    assert os.listdir("/proc/self/fd") == files
