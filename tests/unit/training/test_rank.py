"""Which rank of `launch/train.py` reports a user's error, and when."""

import socket
import sys

import pytest

from ma2mba.training import rank as trainer


@pytest.fixture
def refused(monkeypatch, capsys):
    """Run a rank with a recipe that does not exist; return its stderr and the seconds it waited."""

    def run(rank: int, local_rank: int):
        waited = []
        monkeypatch.setattr(trainer, "RANK", rank)
        monkeypatch.setattr(trainer, "LOCAL_RANK", local_rank, raising=False)
        monkeypatch.setattr(trainer.time, "sleep", waited.append)
        monkeypatch.setattr(sys, "argv", ["train.py", "none.yaml"])
        assert trainer.main() == 2
        return capsys.readouterr().err, sum(waited)

    return run


def test_the_first_rank_speaks_at_once(refused):
    said, waited = refused(0, 0)
    assert said.startswith("error: none.yaml: cannot be read")
    assert waited == 0


def test_the_first_rank_of_another_node_speaks_for_it(refused):
    said, waited = refused(8, 0)
    assert said.startswith(f"error: rank 8 on {socket.gethostname()}: none.yaml: cannot be read")
    assert waited == 0


def test_another_rank_waits_for_that_one_and_speaks_if_it_is_left_alone(refused):
    said, waited = refused(3, 3)
    assert waited >= 60, "ranks come up as far apart as a loaded machine lets them"
    assert said.startswith(f"error: rank 3 on {socket.gethostname()}: none.yaml")
