"""Run the deepspeed launcher and pass a cluster's signals on to its ranks: launch/run.py [options] launch/train.py ...

Takes the arguments of `deepspeed`. `ma2mba.training.launcher` does the work.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ma2mba.errors import UserError
from ma2mba.terminal import Terminal
from ma2mba.training.launcher import run_launcher

if __name__ == "__main__":
    try:
        sys.exit(run_launcher(sys.argv[1:]))
    except UserError as error:
        Terminal(stderr=True).error(str(error))
        sys.exit(2)
