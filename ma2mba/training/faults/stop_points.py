"""Where in a step a run may stop because of a signal. The ranks decide it together (stop_vote.py)."""

from ma2mba.training.faults.signals import SignalListener
from ma2mba.training.faults.stop_vote import StopVote


class Stopped(Exception):
    """All ranks stop. The message names the signal that this rank received, or says that another rank received it."""


class StopPoints:
    """This rank's side of the decision to stop: the train step calls it at the points below.

    Who      A rank that receives SIGTERM or SIGUSR1 asks to stop (SignalListener). All ranks decide together
             (StopVote): either all give up the step in progress, or all finish it and stop at the start of the next.
    Where    Every step passes the points below. Each point raises Stopped on all ranks, or on none.
    Result   The weights stay as the last finished step left them: they change only when all ranks have all gradients.
             `loop.train` catches Stopped and saves a checkpoint.

    Errors do not pass here: a rank that raises one calls `fail`, so that no other rank waits for it, and guard.py
    reports it. watchdog.py ends ranks that hang, finite.py stops a run whose loss is not a number.

    Before a micro-batch and before each chunk, a rank leaves at once. Before a collective of DeepSpeed a rank waits
    until all ranks have arrived or one has left, because a rank inside the collective could not leave any more. ZeRO 3
    gathers weights before forward and before backward; from ZeRO 2 on, gradients are reduced in every micro-batch, else
    in the step's last one.
    """

    def __init__(self, vote: StopVote, zero_stage: int):
        self.signals = SignalListener()
        self._vote, self._zero_stage, self._last = vote, zero_stage, False

    def __enter__(self) -> "StopPoints":
        self.signals.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.signals.__exit__()

    def before_micro_batch(self, last: bool) -> None:
        """Call it before each micro-batch; `last` is True for the step's last one."""
        self._last = last
        self.before_chunk()

    def before_forward(self) -> None:
        if self._zero_stage == 3:
            self._meet()

    def before_chunk(self) -> None:
        """Call it before each chunk, in forward and in backward. On a GPU, backward calls it from another thread."""
        if self._vote.given_up(self.signals.received()):
            raise self._stopped()

    def before_backward(self) -> None:
        if self._zero_stage == 3:
            self._meet()

    def before_reduction(self) -> None:
        """Call it at the end of backward, when this rank has all gradients of the micro-batch."""
        if self._zero_stage > 1 or self._last:
            self._meet()

    def fail(self) -> None:
        """Tell the other ranks not to wait for this one."""
        self._vote.fail()

    def _meet(self) -> None:
        if not self._vote.arrive(self.signals.received):
            raise self._stopped()

    def _stopped(self) -> Stopped:
        return Stopped(self.signals.name or "signal to another rank")
