"""The time limit of a step, the report of the first rank that fails, and the reports of the previous launch."""

import json
import os
import threading
from types import SimpleNamespace

import pytest
import torch

from ma2mba.errors import UserError
from ma2mba.training.faults import activity as activities
from ma2mba.training.faults import failures, heartbeat
from ma2mba.training.faults import watchdog as watchdogs
from ma2mba.training.faults.activity import Activity
from ma2mba.training.faults.heartbeat import Heartbeat
from ma2mba.training.faults.stop_vote import LostRank
from ma2mba.training.faults.watchdog import START_SECONDS, Watchdog
from ma2mba.training.recipe.schema import Watchdog as Limits


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(activities.time, "monotonic", lambda: now.seconds)
    return now


def take_steps(activity, clock, *steps):
    """Take steps of (tokens, seconds)."""
    for number, (tokens, seconds) in enumerate(steps, 1):
        activity.begin_step(number, tokens)
        clock.seconds += seconds


def test_a_step_may_take_a_few_times_as_long_as_its_tokens_usually_do(tmp_path, clock):
    activity = Activity()
    watchdog = Watchdog(tmp_path, 0, 1, activity, Limits(seconds=100, factor=4))
    assert watchdog.limit == START_SECONDS
    take_steps(activity, clock, (1000, 50), (10, 2), (1000, 20), (2000, 40))
    activity.begin_step(5, 50_000)
    assert activity.usual_seconds == pytest.approx(50_000 * 0.035)  # the median of 0.05, 0.2, 0.02, 0.02 a token
    assert watchdog.limit == pytest.approx(4 * 50_000 * 0.035)
    activity.begin_step(6, 10)
    assert watchdog.limit == 100
    activity.begin_saving()
    assert (watchdog.limit, activity.facts()["phase"], activity.facts()["sample_ids"]) == (100, "saving", [])
    assert Watchdog(tmp_path, 0, 1, activity, None).limit == float("inf")


def test_a_save_and_a_start_do_not_count_as_steps(clock):
    activity = Activity()
    clock.seconds += 1000
    activity.begin_step(1, 100)
    clock.seconds += 1
    activity.begin_saving()
    clock.seconds += 1000
    activity.begin_step(2, 100)
    assert (activity.timed_steps, activity.usual_seconds) == (1, 1.0)


def test_only_one_of_many_is_first(tmp_path):
    together, won = threading.Barrier(8), []

    def fail(rank):
        together.wait()
        if failures.claim_first(tmp_path, {"rank": rank, "what": "failed"}):
            won.append(rank)

    threads = [threading.Thread(target=fail, args=(rank,)) for rank in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert failures.first_failure(tmp_path) == {"rank": won[0], "what": "failed"}


@pytest.mark.parametrize("links", [True, False])
def test_the_first_failure_is_never_seen_half_written(tmp_path, monkeypatch, links):
    """What other ranks see while it is written, on file systems with and without hard links."""
    seen, link, dumps = [], os.link, json.dumps

    def look(facts):
        seen.append(failures.first_failure(tmp_path))
        return dumps(facts)

    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(failures.json, "dumps", look)
    monkeypatch.setattr(failures.json, "dump", lambda facts, file: file.write(look(facts)))
    monkeypatch.setattr(failures.os, "link", link if links else refuse)
    assert failures.claim_first(tmp_path, {"rank": 1, "what": "failed"})
    assert not failures.claim_first(tmp_path, {"rank": 2, "what": "failed"})
    assert seen[0] is None
    assert failures.first_failure(tmp_path) == {"rank": 1, "what": "failed"}
    assert [path.name for path in (tmp_path / "failures").iterdir()] == ["first.json"]


@pytest.mark.parametrize("error", [LostRank("another rank has failed"), RuntimeError("Connection reset by peer")])
def test_a_rank_waits_longer_for_a_failure_that_was_announced(tmp_path, capsys, monkeypatch, clock, error):
    """The report comes after 30 s: a rank with LostRank waits for it, a rank with a broken connection does not."""

    def sleep(seconds):
        clock.seconds += seconds
        if clock.seconds > 30:
            failures.claim_first(tmp_path, {"rank": 0, "what": "failed"})

    monkeypatch.setattr(failures.time, "sleep", sleep)
    clock.seconds = 0
    failures.report(error, tmp_path, 1, Activity(), lambda: None)
    heard = "rank 1 ends: rank 0 failed first" in capsys.readouterr().err
    assert heard == isinstance(error, LostRank)


def test_all_ranks_share_one_report_and_one_exit_code(tmp_path, capsys):
    own = Activity()
    codes = [
        failures.report(UserError("shards: damaged"), tmp_path, 3, own, lambda: None),
        failures.report(RuntimeError("[pair.cc:553] Connection closed by peer"), tmp_path, 0, own, lambda: None),
    ]
    said = capsys.readouterr().err
    assert codes == [failures.EXIT_USER, failures.EXIT_USER]
    assert said.startswith("error: shards: damaged\n  (rank 3, step 0, starting")
    assert f"rank 0 ends: rank 3 failed first (see {tmp_path / 'failures'})" in said
    assert "pair.cc" not in said
    assert "pair.cc" in (tmp_path / "failures" / "rank-0.txt").read_text()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Connection reset by peer"),
        torch.distributed.DistNetworkError("Failed to recv, got 0 bytes. Connection was likely closed."),
    ],
)
def test_a_rank_that_loses_another_without_a_report_says_so(tmp_path, capsys, monkeypatch, error):
    monkeypatch.setattr(failures, "PATIENCE_SECONDS", 0.0)
    code = failures.report(error, tmp_path, 1, Activity(), lambda: None)
    said = capsys.readouterr().err
    assert code == failures.EXIT_FAILED
    assert "rank 1 lost contact with a rank that left no report" in said
    assert f"{type(error).__name__}: {error}" in said


def test_an_explanation_replaces_the_traceback_which_is_kept_in_the_report(tmp_path, capsys):
    error = torch.OutOfMemoryError("CUDA out of memory")
    assert failures.report(error, tmp_path, 0, Activity(), lambda: "out of memory: explained") == failures.EXIT_FAILED
    assert capsys.readouterr().err.endswith("out of memory: explained\n")
    assert "OutOfMemoryError" in (tmp_path / "failures" / "rank-0.txt").read_text()


def test_an_explanation_that_fails_does_not_hide_the_error(tmp_path, capsys):
    failures.report(ValueError("the error"), tmp_path, 0, Activity(), lambda: str(1 // 0))
    said = capsys.readouterr().err
    assert "ValueError: the error" in said
    assert "ZeroDivisionError" in said


def test_the_reports_of_the_previous_launch_are_moved_aside(tmp_path):
    for launch in range(3):
        failures.claim_first(tmp_path, {"rank": launch, "what": "failed"})
        failures.clear(tmp_path)
        assert failures.first_failure(tmp_path) is None
        kept = json.loads((tmp_path / "failures.before" / "first.json").read_text())
        assert kept["rank"] == launch


def test_a_rank_without_heartbeat_is_lost(tmp_path, clock):
    first, second = Heartbeat(tmp_path, 0, 2), Heartbeat(tmp_path, 1, 2)
    assert not first.lost()  # it has not begun
    for _ in range(5):
        clock.seconds += 100
        second.beat()
        assert not first.lost()
    clock.seconds += 180
    assert not first.lost()
    clock.seconds += 1
    assert first.lost()
    second.beat()
    assert not first.lost()
    clock.seconds += 1000
    second.end()
    assert not first.lost()
    assert not Heartbeat(tmp_path, 0, 1).lost()


def test_the_rank_that_notices_a_lost_rank_ends_all(tmp_path, monkeypatch, capfd):
    """Run the watchdog's thread while the next rank sends no heartbeat."""
    monkeypatch.setattr(watchdogs, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(heartbeat, "LOST_SECONDS", 0.05)
    ended = threading.Event()
    codes: list[int] = []

    def end(self, code):
        codes.append(code)
        ended.set()
        self._stop.set()

    monkeypatch.setattr(Watchdog, "_end", end)
    Heartbeat(tmp_path, 1, 2).beat()
    with Watchdog(tmp_path, 0, 2, Activity(), Limits()):
        assert ended.wait(30)
    assert codes == [failures.EXIT_FAILED]
    assert "rank 1 has sent no heartbeat" in capfd.readouterr().err
    assert failures.first_failure(tmp_path)["what"] == "was lost"
    assert not (tmp_path / "alive" / "rank-0").exists()
