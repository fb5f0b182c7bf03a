"""The deepspeed launcher, with a cluster's signals handed to its ranks: launch/run.py [options] launch/train.py ...

Arguments are those of `deepspeed`; `ma2mba.training.launcher` does the work.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ma2mba.training.launcher import run_launcher

if __name__ == "__main__":
    sys.exit(run_launcher(sys.argv[1:]))
