"""When host memory runs out, the message says what needs less of it."""

import errno
from types import SimpleNamespace

import pytest

from ma2mba.magc import Plan
from ma2mba.planner.memory import GIB
from ma2mba.training.faults import guard
from ma2mba.training.faults.activity import Activity
from ma2mba.training.fit.pricing import Machine


@pytest.fixture
def job(monkeypatch):
    monkeypatch.setattr(guard, "machine_of", lambda world, policy: Machine(80 * GIB, 100 * GIB))
    prediction = SimpleNamespace(host_bytes=90 * GIB)
    return SimpleNamespace(
        plan=Plan(stash="host"), fitted_plan=SimpleNamespace(prediction=prediction), world=None, policy=None
    )


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("5,000 bytes of host memory cannot be pinned (2). Keep fewer boundaries"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 5000 bytes."),
    ],
)
def test_out_of_host_memory_is_explained(job, error):
    said = guard.explanation(error, job, Activity())
    assert said.startswith("out of host memory in a micro-batch of 0 x 0 tokens")
    assert "predicted: 90.00 GiB of host memory for recurrent states and optimizer of this rank" in said
    assert "its share of the host is 100.00 GiB" in said
    assert "magc.stash: device" in said


def test_on_a_cpu_host_memory_is_the_devices_memory(job, monkeypatch):
    monkeypatch.setattr(guard, "machine_of", lambda world, policy: Machine(8 * GIB, one_memory=True))
    monkeypatch.setattr(guard, "out_of_memory", lambda job, activity: "out of memory: explained")
    assert guard.explanation(MemoryError(), job, Activity()) == "out of memory: explained"


def test_other_errors_are_not_explained(job):
    for error in (ValueError("no"), OSError(errno.ENOSPC, "No space left on device"), RuntimeError("NCCL error")):
        assert guard.explanation(error, job, Activity()) is None
