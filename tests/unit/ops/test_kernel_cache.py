"""A self-test that passed on a machine is not run again, unless something that decides its result has changed."""

import json
import logging
import os

import pytest
import torch

from ma2mba.ops import kernel_cache
from ma2mba.ops.kernel_cache import TRITON, KernelCache

TEST = {"gpu": "H200", "code": "a"}


@pytest.fixture
def known(tmp_path, monkeypatch) -> KernelCache:
    """Return the cache of a machine, with one compiled kernel."""
    for variable in kernel_cache.PLACES:
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    cache = kernel_cache._open(tmp_path / "kernels" / "machine")
    assert cache
    cache.use()
    kernel = cache.folder / "triton" / "key"
    kernel.mkdir(parents=True)
    (kernel / "scan.cubin").write_bytes(b"code")
    return cache


def passed_file(cache):
    (path,) = cache.folder.glob("passed-*.json")
    return path


def test_a_test_that_passed_is_known(known):
    assert not known.has_passed(TEST)
    known.note_passed(TEST)
    assert known.has_passed(TEST)
    assert not known.has_passed(TEST | {"code": "b"})
    (known.folder / "triton" / "later.cubin").write_bytes(b"another kernel")
    assert known.has_passed(TEST), "kernels that were compiled later do not matter"


@pytest.mark.parametrize("change", ["other bytes", "gone"])
def test_a_kernel_that_has_changed_is_compiled_and_tested_again(known, caplog, change):
    known.note_passed(TEST)
    known.note_passed(TEST | {"gpu": "another"})
    kernel = known.folder / "triton" / "key" / "scan.cubin"
    if change == "gone":
        kernel.unlink()
    else:
        kernel.write_bytes(b"cod\0")
    with caplog.at_level(logging.WARNING):
        assert not known.has_passed(TEST)
    assert "scan.cubin has changed since it was compiled" in caplog.text
    assert not kernel.parent.exists(), "Triton would load it"
    assert not known.has_passed(TEST | {"gpu": "another"}), "that result was found with the removed kernels"


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "{}",
        lambda text: text.replace('"a"', '"b"'),
        lambda text: json.dumps(json.loads(text) | {"kernels": {}}),
    ],
)
def test_a_damaged_or_edited_result_is_ignored(known, damage):
    known.note_passed(TEST)
    path = passed_file(known)
    path.write_text(damage(path.read_text()))
    assert not known.has_passed(TEST)
    known.note_passed(TEST)
    assert known.has_passed(TEST)


def test_a_result_under_another_name_is_ignored(known):
    known.note_passed(TEST)
    other = TEST | {"code": "b"}
    passed_file(known).rename(known._place(other))
    assert not known.has_passed(other)


def test_a_folder_that_others_may_write_to_is_not_used(tmp_path, caplog):
    folder = tmp_path / "machine"
    folder.mkdir()
    folder.chmod(0o775)
    with caplog.at_level(logging.INFO):
        assert kernel_cache._open(folder) is None
    assert "other users may change it" in caplog.text
    folder.chmod(0o700)
    assert kernel_cache._open(folder)
    (tmp_path / "link").symlink_to(folder)
    assert kernel_cache._open(tmp_path / "link") is None


def test_a_folder_that_cannot_be_made_is_not_used(tmp_path):
    (tmp_path / "file").touch()
    assert kernel_cache._open(tmp_path / "file" / "machine") is None


def test_a_folder_of_the_users_choice_is_respected_and_nothing_is_known_of_it(known, monkeypatch, tmp_path):
    known.note_passed(TEST)
    monkeypatch.setenv(TRITON, str(tmp_path / "own"))
    known.use()
    assert os.environ[TRITON] == str(tmp_path / "own")
    assert not known.has_passed(TEST)
    known.note_passed(TEST | {"gpu": "another"})
    assert len(list(known.folder.glob("passed-*.json"))) == 1


def test_a_folder_that_has_become_unusable_stops_nothing(known):
    for path in sorted(known.folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    known.folder.rmdir()
    known.note_passed(TEST)
    assert not known.has_passed(TEST)


def test_a_cpu_has_no_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert KernelCache.of(torch.device("cpu")) is None
    assert not list(tmp_path.iterdir())


def test_a_gpu_has_a_folder_for_each_driver(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folders = set()
    for driver in ("1", "2", "1"):
        monkeypatch.setattr(kernel_cache, "machine", lambda device, driver=driver: {"driver": driver})
        folders.add(KernelCache.of(torch.device("cuda")).folder)
    assert len(folders) == 2
    assert all(folder.parent == tmp_path / "ma2mba" / "kernels" for folder in folders)


def test_another_code_is_another_test(monkeypatch, tmp_path):
    monkeypatch.setattr(kernel_cache, "machine", lambda device: {})
    gpu = type("Gpu", (), {"uuid": "GPU-1"})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    (tmp_path / "ops").mkdir()
    (tmp_path / "ops/scan.py").write_text("1")
    (tmp_path / "layer.py").write_text("1")

    def test(sizes="s"):
        return kernel_cache.describe_test(torch.device("cuda"), sizes, [tmp_path / "ops", tmp_path / "layer.py"])

    first = test()
    assert first == test() != test("t")
    (tmp_path / "ops/scan.py").write_text("2")
    assert test() != first
    (tmp_path / "ops/scan.py").write_text("1")
    monkeypatch.setenv("TRITON_F32_DEFAULT", "tf32")
    assert test() != first
    monkeypatch.delenv("TRITON_F32_DEFAULT")
    gpu.uuid = "GPU-2"
    assert test() != first
