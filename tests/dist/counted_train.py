"""launch/train.py, which notes in start-RANK.json what each part of a start has read and held, in MiB.

`rss` and `peak` are resident memory, `read` is what this process has read from files, also from the page cache.
"""

import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from ma2mba.training import job, opening  # noqa: E402
from ma2mba.training.rank import main  # noqa: E402

NOTED: dict[str, dict[str, int]] = {}


def measure():
    status, io = (Path(f"/proc/self/{name}").read_text().splitlines() for name in ("status", "io"))
    kib = {line.split(":")[0]: int(line.split()[1]) for line in status if line.startswith(("VmRSS", "VmHWM"))}
    read = next(int(line.split()[1]) for line in io if line.startswith("rchar"))
    return {"rss": kib["VmRSS"] >> 10, "peak": kib["VmHWM"] >> 10, "read": read >> 20}


def noted(name, function):
    def run(*arguments, **options):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        NOTED[f"before {name}"] = measure()
        result = function(*arguments, **options)
        NOTED[f"after {name}"] = measure()
        Path(f"start-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(NOTED))
        return result

    return run


job.build = noted("build", job.build)
opening.open_engine = noted("engine", opening.open_engine)

if __name__ == "__main__":
    sys.exit(main())
