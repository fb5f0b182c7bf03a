"""Training does not start on kernels that disagree with plain torch.

The tests replace the kernels by plain torch, correct or with one fault.
"""

import importlib.util
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ma2mba.errors import UserError
from ma2mba.model.config import ModelConfig
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.ops import kernel_cache, selftest
from ma2mba.training import kernel_check
from tests.tiny import TINY_MODEL

MODEL = VideoMa2mba(ModelConfig.model_validate(TINY_MODEL))
CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def kernels(monkeypatch):
    """Report a backend of kernels, and apply `fault` to their results."""
    for module in (selftest, kernel_check):
        monkeypatch.setattr(module, "backend", lambda device: "triton")

    def with_fault(fault):
        def layer(x, conv, ssm, weights, shape):
            return fault(*selftest.mamba2_layer_reference(x, conv, ssm, weights, shape))

        monkeypatch.setattr(selftest, "mamba2_layer", layer)

    return with_fault


def test_correct_kernels_pass(kernels):
    kernels(lambda y, conv, ssm: (y, conv, ssm))
    kernel_check.check_operations(CPU, MODEL)


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        (lambda y, conv, ssm: (y * 1.05, conv, ssm), "gradient of|output"),
        (lambda y, conv, ssm: (y, conv, ssm.roll(1, 2)), "scan's state"),
        (lambda y, conv, ssm: (y, conv.detach() + 0 * y.sum(), ssm), "gradient of"),
        (lambda y, conv, ssm: (y * float("nan"), conv, ssm), "relative error nan"),
    ],
)
def test_wrong_kernels_are_named(kernels, fault, what):
    kernels(fault)
    with pytest.raises(UserError, match=what) as refused:
        kernel_check.check_operations(CPU, MODEL)
    assert "layer" in str(refused.value)
    assert "MA2MBA_OPS=torch" in str(refused.value)


def test_kernels_that_do_not_run_are_named(kernels):
    def fault(*_):
        raise RuntimeError("ptxas failed")

    kernels(fault)
    with pytest.raises(UserError, match=r"layer, does not run \(RuntimeError: ptxas failed"):
        kernel_check.check_operations(CPU, MODEL)


def test_plain_torch_needs_no_check(monkeypatch):
    monkeypatch.setattr(selftest, "layer_results", lambda *_, **__: pytest.fail("was run"))
    kernel_check.check_operations(CPU, MODEL)


def test_the_check_does_not_change_the_random_state(kernels):
    kernels(lambda y, conv, ssm: (y, conv, ssm))
    before = torch.get_rng_state()
    kernel_check.check_operations(CPU, MODEL)
    list(kernel_check.schedule_rows(CPU))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def compared(kernels, monkeypatch, tmp_path):
    """Give this CPU a cache of kernels, and note every comparison."""
    kernels(lambda y, conv, ssm: (y, conv, ssm))
    monkeypatch.setenv(kernel_cache.TRITON, "")
    monkeypatch.delenv(kernel_cache.TRITON)
    cache = kernel_cache._open(tmp_path / "machine")
    cache.use()
    monkeypatch.setattr(kernel_check.KernelCache, "of", lambda device: cache)
    monkeypatch.setattr(kernel_cache, "describe_test", lambda device, sizes, code: {"sizes": sizes})
    done, compare = [], kernel_check._compare
    monkeypatch.setattr(kernel_check, "_compare", lambda device, model: (done.append(model), compare(device, model)))
    return done


def test_kernels_are_compared_once_on_a_machine(compared):
    for _ in range(3):
        kernel_check.check_operations(CPU, MODEL)
    assert len(compared) == 1
    other = ModelConfig.model_validate(TINY_MODEL | {"language_model": TINY_MODEL["language_model"] | {"n_layer": 1}})
    for _ in range(2):
        kernel_check.check_operations(CPU, VideoMa2mba(other))
    assert len(compared) == 2


def test_wrong_kernels_are_compared_at_every_start(compared, kernels):
    kernels(lambda y, conv, ssm: (y * 2, conv, ssm))
    for _ in range(2):
        with pytest.raises(UserError, match="disagree"):
            kernel_check.check_operations(CPU, MODEL)
    assert len(compared) == 2


def test_kernels_of_a_layer_from_elsewhere_are_compared_at_every_start(compared, monkeypatch):
    monkeypatch.setattr(kernel_check, "OWN", "another_package.")
    for _ in range(2):
        kernel_check.check_operations(CPU, MODEL)
    assert len(compared) == 2


def test_a_schedule_that_is_wrong_is_found(monkeypatch):
    assert all(row.ok for row in kernel_check.schedule_rows(CPU))
    right = kernel_check.checkpoint

    def truncated(layers, x, states, plan):
        y, after = right(layers, x, states, plan)
        return (y.detach() + (y - y.detach()) * 1.0001 if plan.stash == "host" else y), after

    monkeypatch.setattr(kernel_check, "checkpoint", truncated)
    assert [row.ok for row in kernel_check.schedule_rows(CPU)] == [plan.stash != "host" for plan in kernel_check.PLANS]


def test_the_trainer_exits_with_2_before_it_opens_the_engine(kernels, monkeypatch, capsys):
    from ma2mba.training import engine as deepspeed_engine
    from ma2mba.training import job as build
    from ma2mba.training import opening
    from ma2mba.training.faults import failures, guard

    monkeypatch.setattr(guard, "guard", lambda job, activity, release: nullcontext())  # it would end this process
    job = SimpleNamespace(first_step=0, steps=1, world=SimpleNamespace(device=CPU), model=MODEL)
    monkeypatch.setattr(build, "build", lambda recipe, world: job)
    monkeypatch.setattr(deepspeed_engine, "start_processes", lambda world: None)
    monkeypatch.setattr(failures, "clear", lambda run: None)
    monkeypatch.setattr(opening, "open_loader", nullcontext)
    monkeypatch.setattr(opening, "open_engine", lambda job: pytest.fail("the engine was opened"))
    kernels(lambda y, conv, ssm: (y, conv, ssm * 2))
    spec = importlib.util.spec_from_file_location("train", ROOT / "launch" / "train.py")
    train = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(train)
    monkeypatch.setattr("sys.argv", ["train.py", str(ROOT / "examples/demo/recipes/stage1.yaml"), "data=x", "run=y"])
    assert train.main() == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "error: the kernels on cpu disagree with plain torch: layer, scan's state (relative error 1.0e+00" in said
    assert "MA2MBA_OPS=torch" in said
