"""Host memory for snapshots is what the plan, other processes and other ranks leave."""

import psutil
import pytest
import torch

from ma2mba.magc import Plan
from ma2mba.planner.memory import GIB, Host
from ma2mba.planner.predict import Prediction
from ma2mba.training.fit import spare_memory
from ma2mba.training.fit.pricing import Machine
from ma2mba.training.fit.spare_memory import spare_host_bytes
from ma2mba.training.world import World, load_policy


def spare(monkeypatch, free, *, device=0, host=0, machine=None, local_size=1):
    """Return the spare GiB on a host of 100 GiB, for a plan that needs so many GiB."""
    monkeypatch.setattr(Host, "memory", lambda self: 100 * GIB)
    monkeypatch.setattr(Host, "free", lambda self: free * GIB)
    if machine:
        monkeypatch.setattr(spare_memory, "machine_of", lambda world, policy: machine)
    world = World(0, local_size, torch.device("cpu"), local_size)
    prediction = Prediction(Plan(), {"weights": device * GIB}, {"sequence": host * GIB}, 1.0, "")
    return spare_host_bytes(world, load_policy("zero1"), prediction) / GIB


def test_on_a_cpu_the_plan_takes_from_the_same_memory(monkeypatch):
    missing = 30 - psutil.Process().memory_info().rss / GIB
    assert spare(monkeypatch, 90, device=30) == pytest.approx(min(80 - 30, 0.8 * 90 - missing), abs=0.2)
    assert spare(monkeypatch, 50, device=30) == pytest.approx(0.8 * 50 - missing, abs=0.2)
    assert spare(monkeypatch, 90, device=30, local_size=4) < 0


def test_on_a_gpu_the_plan_takes_what_it_keeps_on_the_host(monkeypatch):
    machine = Machine(141 * GIB, 80 * GIB)
    assert spare(monkeypatch, 100, device=130, machine=machine) == pytest.approx(80)
    assert spare(monkeypatch, 100, device=130, host=50, machine=machine) == pytest.approx(30, abs=1)
    assert spare(monkeypatch, 40, device=130, host=50, machine=machine) < 0
