"""What a command that writes answers does when it is stopped: it keeps them, and says how to resume."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from ma2mba.cli.output import err

Tell = Callable[[int, int], None]


class Stopped(BaseException):
    """SIGTERM came."""


@contextmanager
def keeping_answers(place: Path | None) -> Iterator[Callable[[Tell], Tell]]:
    """Give a function that counts what a progress function is told. Exit with 130 at Ctrl-C, with 143 at SIGTERM.

    `place`: where the answers are; None if they are not kept.
    """
    done = total = 0

    def counting(tell: Tell) -> Tell:
        def count(now: int, of: int) -> None:
            nonlocal done, total
            done, total = now, of
            tell(now, of)

        return count

    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield counting
    except (KeyboardInterrupt, Stopped) as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it twice
        kept = f"{place} has {done:,} of {total:,} answers" if total else f"{place} has all answers so far"
        remedy = "Run the same command again to resume" if place else "Without --out, no answer is kept"
        err.print(f"stopped: {kept}. {remedy}" if place else f"stopped. {remedy}", soft_wrap=True)
        raise SystemExit(143 if isinstance(error, Stopped) else 130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped
