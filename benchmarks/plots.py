"""Memory and speed against the length of the sequence: python benchmarks/plots.py RESULTS.json ... --out FOLDER

RESULTS.json are what benchmarks/magc.py wrote; PEERS.json holds figures of other code with where they come from. The
paper's memory is its Table 3 (2.7B).
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
MEASURED = {"official": "official MA-GC, beside ours", "peer": "no checkpointing"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--peers", type=Path, default=PEERS)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
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
        ("Forward and backward", "tokens a second", speed, "speed.png"),
    ):
        draw_scaling(title, unit, points, names, arguments.out / file, gpu)


def curves(cases: list[dict[str, Any]], peers: dict[str, Any]) -> tuple[Points, Points]:
    """Memory and speed by name, (tokens, value) in the order of tokens; the fastest of repeated steps, without those of
    which a note says what they did beside the work.

    Without checkpointing, what was measured replaces the earlier figure; the official code's earlier ones stay.
    """
    memory: Points = {}
    speed: Points = {}
    for case in cases:
        if case["case"] == "exact" or case.get("ranks", 1) > 1:
            continue
        if case["case"] == "stream":
            name = f"ma2mba, chunks of {case['chunk']:,}" + (f", {case['memos']} memos" if case.get("memos") else "")
            memory.setdefault(name, []).append((case["tokens"], case["beyond_gib"]))
        elif case["case"] == "train":
            name = f"ma2mba, chunks of {case['chunk']:,}, with the optimizer"
        else:
            name = MEASURED[case["case"]]
            memory.setdefault(name, []).append((case["tokens"], case["beyond_gib"]))
        if "note" not in case:
            speed.setdefault(name, []).append((case["tokens"], case["tokens"] / min(case["seconds"])))
    for name, peer in peers.items():
        if name not in speed:
            memory[name] = [(point["tokens"], point["beyond_gib"]) for point in peer["points"]]
            speed[name] = [(point["tokens"], point["tokens_per_second"]) for point in peer["points"]]
    return ({name: sorted(points) for name, points in curve.items()} for curve in (memory, speed))  # type: ignore[return-value]


if __name__ == "__main__":
    main()
