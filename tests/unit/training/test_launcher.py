"""launch/run.py passes signals on to ranks; some may have ended already."""

import signal
import subprocess
import sys

import psutil

from ma2mba.training.launcher import ask


def test_a_rank_that_has_ended_does_not_keep_the_signal_from_the_others():
    idle = [sys.executable, "-c", "import time; time.sleep(600)"]
    ended, alive = (subprocess.Popen(idle) for _ in range(2))
    ranks = [psutil.Process(process.pid) for process in (ended, alive)]
    ended.kill()
    ended.wait()
    ask(ranks, signal.SIGTERM)
    assert alive.wait(60) == -signal.SIGTERM
