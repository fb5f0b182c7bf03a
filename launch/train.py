"""Train one stage: deepspeed launch/train.py RECIPE [key=value ...]

`ma2mba train --gpus N` does the same from anywhere. `ma2mba.training.rank` does the work.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ma2mba.training.rank import main

if __name__ == "__main__":
    sys.exit(main())
