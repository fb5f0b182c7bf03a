"""`ma2mba doctor` as a user runs it."""

import json
import sys

import pytest

from ma2mba.cli import app as cli
from ma2mba.cli import doctor as cli_doctor
from ma2mba.errors import UserError
from ma2mba.ops import selftest
from ma2mba.ops.backend import _choose
from ma2mba.ops.selftest import Sizes


@pytest.fixture
def doctor(monkeypatch, capsys):
    monkeypatch.setattr(cli_doctor.out, "width", 200)
    monkeypatch.setenv("MA2MBA_OPS", "torch")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(selftest, "CASES", ((19, 2, Sizes(32, 4, 16, 2, 8, 8)),))
    monkeypatch.setattr(selftest, "POSITIONS", (20,))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ma2mba", "doctor", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return run


def test_a_sound_machine(doctor):
    code, text, _ = doctor("--json")
    facts = json.loads(text)
    assert code == 0
    assert facts["ok"]
    assert facts["versions"]["torch"]
    assert facts["host_free_bytes"] > 2**20
    assert facts["operations"]["run_in"] == "torch"
    names = {(row["operation"], row["what"]) for row in facts["self_test"]}
    assert {("layer", "scan's state"), ("layer", "gradient of A_log"), ("loss", "gradient of the weight")} <= names
    assert ("MA-GC", "output, gradients") in names
    assert all(0 < row["error"] < row["bound"] for row in facts["self_test"])


def test_text_for_people(doctor):
    code, text, _ = doctor()
    assert code == 0
    assert "results are right" in text
    assert "there is no GPU" in text


def test_an_operation_that_is_wrong(doctor, monkeypatch):
    right = selftest.mamba2_layer

    def wrong(x, conv, ssm, weights, shape):
        y, conv, ssm = right(x, conv, ssm, weights, shape)
        return y, conv, ssm * 1.001

    monkeypatch.setattr(selftest, "mamba2_layer", wrong)
    code, text, _ = doctor()
    assert code == 1
    assert "wrong" in text
    assert "scan's state" in text
    code, text, _ = doctor("--json")
    wrong_rows = [row["what"] for row in json.loads(text)["self_test"] if not row["ok"]]
    assert code == 1
    assert "scan's state" in wrong_rows
    assert "output" not in wrong_rows


def test_an_operation_that_does_not_run_or_gives_nan(doctor, monkeypatch):
    def broken(x, weight, targets):
        raise RuntimeError("no kernel image is available for execution on the device")

    monkeypatch.setattr(selftest, "cross_entropy_sum", broken)
    code, text, _ = doctor("--json")
    (row,) = [row for row in json.loads(text)["self_test"] if row["operation"] == "loss"]
    assert code == 1
    assert row["error"] is None
    assert row["note"].startswith("RuntimeError: no kernel image")
    monkeypatch.setattr(
        selftest, "cross_entropy_sum", lambda x, weight, targets: (x.sum() + weight.sum()) * float("nan")
    )
    code, text, _ = doctor()
    assert code == 1
    assert "nan" in text


def test_wrong_usage(doctor, monkeypatch):
    assert doctor("--loud")[0] == 2
    monkeypatch.setenv("MA2MBA_OPS", "fast")
    code, _, error = doctor()
    assert code == 2
    assert "MA2MBA_OPS=fast: unknown value. Set MA2MBA_OPS to torch or triton" in error


@pytest.fixture
def no_kernels(monkeypatch):
    """The GPU kernels are not installed, and nothing has been chosen yet."""
    _choose.cache_clear()
    for name in ("TRITON_CACHE_AUTOTUNING", "TRITON_F32_DEFAULT"):
        monkeypatch.setenv(name, "as it was")
    monkeypatch.setitem(sys.modules, "ma2mba.ops.triton.layer", None)
    yield
    _choose.cache_clear()


def test_the_choice_of_operations_and_its_reason(no_kernels):
    assert _choose("", "cpu") == ("torch", "there is no GPU")
    kind, reason = _choose("", "cuda")
    assert kind == "torch"
    assert "kernels are missing" in reason
    assert "ma2mba[gpu]" in reason
    with pytest.raises(UserError, match="MA2MBA_OPS=triton: the GPU kernels are missing"):
        _choose("triton", "cuda")


@pytest.mark.parametrize(("rank", "warnings"), [(None, 1), ("0", 1), ("3", 0)])
def test_a_gpu_without_kernels_is_told_once_on_each_machine(rank, warnings, no_kernels, monkeypatch, caplog):
    monkeypatch.setenv("LOCAL_RANK", rank) if rank else monkeypatch.delenv("LOCAL_RANK", raising=False)
    for asked, device in [("torch", "cuda"), ("", "cpu"), ("", "cuda"), ("", "cuda")]:
        _choose(asked, device)
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == warnings
    assert all("plain PyTorch" in text and "pip install 'ma2mba[gpu]'" in text for text in said)
