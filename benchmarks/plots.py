"""Plot memory and speed against sequence length: python benchmarks/plots.py RESULTS.json ... --out FOLDER

RESULTS.json are files that benchmarks/magc.py wrote. The file of --peers holds figures of other code with their
sources. The paper's memory figures are Table 3 (2.7B).
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ma2mba.planner.paper import PEAKS_GB
from ma2mba.plots import Points, draw_scaling

PEERS = Path(__file__).parent / "results" / "peers_h200.json"
PAPER = "paper, MA-GC (Table 3)"
MEASURED = {"official": "official MA-GC, same process as ours", "peer": "no checkpointing"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="JSON files that benchmarks/magc.py wrote")
    parser.add_argument("--peers", type=Path, default=PEERS, help=f"figures of other code (default: {PEERS.name})")
    parser.add_argument(
        "--out", type=Path, default=Path("docs/images"), help="folder to write to (default: %(default)s)"
    )
    arguments = parser.parse_args()
    runs = [run for path in arguments.results for run in json.loads(path.read_text())["runs"]]
    cases = [case for run in runs for case in run["cases"]]
    memory, speed = curves(cases, json.loads(arguments.peers.read_text()))
    memory[PAPER] = [(2 ** (10 + i), value) for i, value in enumerate(PEAKS_GB["MA-GC"])]
    arguments.out.mkdir(parents=True, exist_ok=True)
    gpu = runs[0]["machine"]["gpu"]
    names = list(dict.fromkeys([*memory, *speed]))
    for title, unit, points, file in (
        ("Device memory beyond weights and gradients", "GiB", memory, "memory.png"),
        ("Forward and backward", "tokens per second", speed, "speed.png"),
    ):
        draw_scaling(title, unit, points, names, arguments.out / file, gpu)


def curves(cases: list[dict[str, Any]], peers: dict[str, Any]) -> tuple[Points, Points]:
    """Return memory and speed by name, as (tokens, value) in the order of tokens.

    A speed is the fastest step of a case. A case with a `note` has no speed: its steps did other work too. The figures
    of `peers` are used only for a name without measured speeds.
    """
    memory: Points = {}
    speed: Points = {}
    for case in cases:
        if case["case"] == "exact" or case.get("ranks", 1) > 1:
            continue
        if case["case"] in MEASURED:
            name = MEASURED[case["case"]]
        else:
            memos = f", {case['memos']} memos" if case.get("memos") else ""
            optimizer = ", with the optimizer" if case["case"] == "train" else ""
            name = f"ma2mba, chunks of {case['chunk']:,}{memos}{optimizer}"
        if "beyond_gib" in case:
            memory.setdefault(name, []).append((case["tokens"], case["beyond_gib"]))
        if "note" not in case:
            speed.setdefault(name, []).append((case["tokens"], case["tokens"] / min(case["seconds"])))
    for name, peer in peers.items():
        if name not in speed:
            memory[name] = [(point["tokens"], point["beyond_gib"]) for point in peer["points"]]
            speed[name] = [(point["tokens"], point["tokens_per_second"]) for point in peer["points"]]
    return by_tokens(memory), by_tokens(speed)


def by_tokens(curves: Points) -> Points:
    return {name: sorted(points) for name, points in curves.items()}


if __name__ == "__main__":
    main()
