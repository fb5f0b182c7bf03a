"""Builds by several machines, and builds that are killed, give the same bytes as one undisturbed build."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_build_shards import ROOT, command, contents, material, recipe  # noqa: F401 (material is a fixture)

from data_prep.build import build
from data_prep.running import Share
from data_prep.workfolder import Busy, claim
from ma2mba.errors import UserError
from ma2mba.progress import Reporter
from ma2mba.shards.reader import ShardReader

KILLS = 20


@pytest.fixture(scope="module")
def plan(material) -> Path:  # noqa: F811
    """A recipe with one clip per shard."""
    return recipe(material, "scale.yaml", clips_per_part=1)


@pytest.fixture(scope="module")
def whole(plan, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "shards"
    build(plan, out, workers=2)
    return out


def kill_at_a_random_moment(process: subprocess.Popen, out: Path, turn: int, chance: random.Random) -> bool:
    """SIGKILL the builder, alone or with its workers, at any moment or (every third) while it joins the shards."""
    if turn % 3 == 2:
        while process.poll() is None and not (out / "index.parquet").exists():
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.05))
    else:
        time.sleep(chance.uniform(0.3, 2.5))
    try:
        os.killpg(process.pid, signal.SIGKILL) if turn % 2 else process.kill()
    except ProcessLookupError:
        return False
    return process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_killed_twenty_times_the_shards_are_those_of_an_undisturbed_build(plan, whole, tmp_path):
    out, kills, chance = tmp_path / "s", 0, random.Random(4)
    for turn in range(10 * KILLS):
        if (out / "manifest.json").exists():  # finished before the kill: compare, and start a new build
            build(plan, out, workers=2)
            assert contents(out) == contents(whole)
            out = tmp_path / f"s{turn}"
        process = command(str(plan), "--out", str(out), "--workers", "2", start_new_session=True)
        kills += kill_at_a_random_moment(process, out, turn, chance)
        process.communicate()
        if kills == KILLS:
            break
    assert kills == KILLS
    build(plan, out, workers=2)
    assert contents(out) == contents(whole)


def test_tasks_of_an_array_build_their_shares_and_the_last_joins_them(plan, whole, tmp_path):
    out = tmp_path / "s"
    for number in (2, 0):
        report, _ = build(plan, out, workers=1, share=Share(number, 3))
        assert report["parts_missing"] > 0
        assert not (out / "manifest.json").exists()
    with pytest.raises(UserError, match="of 14 shards are not built yet"):
        build(plan, out, workers=1, merge=True)
    report, _ = build(plan, out, workers=1, share=Share(1, 3))
    assert report["samples"] == 9
    assert contents(out) == contents(whole)
    assert build(plan, out, workers=1, share=Share(1, 3))[0]["already_built"]
    assert contents(out) == contents(whole)


def test_tasks_of_an_array_at_once(plan, whole, tmp_path):
    out = tmp_path / "s"
    tasks = [command(str(plan), "--out", str(out), "--workers", "1", "--part", f"{i}/3") for i in range(3)]
    said = [task.communicate() for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0, 0], said
    if not (out / "manifest.json").exists():  # the last two ended at the same moment
        build(plan, out, workers=1, merge=True)
    assert contents(out) == contents(whole)


def test_shares_may_work_side_by_side_but_not_beside_a_whole_build(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.workfolder.PATIENCE", 0.3)
    with claim(tmp_path, {}, shared=True), claim(tmp_path, {}, shared=True), pytest.raises(Busy):
        claim(tmp_path, {}).__enter__()
    with claim(tmp_path, {}), pytest.raises(Busy, match="another build is writing here"):
        claim(tmp_path, {}, shared=True).__enter__()


@pytest.mark.parametrize("text", ["3", "3/3", "-1/3", "a/b", "0/0"])
def test_an_invalid_share(text):
    with pytest.raises(UserError, match="--part"):
        Share.parse(text)
    assert Share.parse("0/1") == Share(0, 1)


def test_the_report_has_durations_lengths_and_reasons(whole):
    report = json.loads((whole / "report.json").read_text())
    rows = ShardReader(whole).rows
    tokens = [len(row.token_ids) + row.frames for row in rows]  # at 32 pixels a frame is one token
    assert report["visual_tokens_per_frame"] == 1
    assert (report["tokens"], report["longest_tokens"]) == (sum(tokens), max(tokens))
    assert sum(report["tokens_per_sample"].values()) == len(rows)
    for size, count in report["tokens_per_sample"].items():
        assert count == sum(int(size) <= length < 2 * int(size) for length in tokens)
    assert report["hours"] == round(sum(row.duration for row in rows) / 3600, 3)
    assert sum(report["rejected_by_reason"].values()) == report["rejected"] == 6
    assert (whole / "lengths.png").read_bytes().startswith(b"\x89PNG")


def test_the_progress_shows_hours_frames_per_second_and_rejects(plan, tmp_path, monkeypatch):
    notes = []
    monkeypatch.setattr("data_prep.running.LOOK_EVERY", 0.0)
    monkeypatch.setattr(Reporter, "advance", lambda self, count=1, note="": notes.append(note))
    build(plan, tmp_path / "s", workers=1)
    assert notes[-1].endswith("5 rejected")  # the sixth record is malformed: it never became a clip
    hours = [float(note.split(" h of video")[0]) for note in notes]
    assert hours == sorted(hours)
    rates = [int(note.split(", ")[1].removesuffix(" frames/s")) for note in notes]
    assert rates[-1] > 0


RAY = """
import sys
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from data_prep.build import build

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False)
assert len([node for node in ray.nodes() if node["Alive"]]) == 2
build(Path(sys.argv[1]), Path(sys.argv[2]), 1, executor="ray")
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_nodes_under_ray_give_the_same_bytes(plan, whole, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed (extra `ray`)")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, "-c", RAY, str(plan), str(tmp_path / "s")],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=220,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "s") == contents(whole)


def test_without_ray_the_executor_says_what_to_install(plan, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "data_prep.ray_executor", raising=False)
    with pytest.raises(UserError, match=r'pip install "ma2mba\[ray\]"'):
        build(plan, tmp_path / "s", workers=1, executor="ray")
