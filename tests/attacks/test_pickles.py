"""Pickled checkpoints from strangers: read by a child, tensors alone, in bounded memory and time, or refused."""

import builtins
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ma2mba.errors import UserError
from ma2mba.model import pickled
from ma2mba.model.pickled import convert_pickle, open_any
from ma2mba.model.tensor_file import TensorFile
from tests import published
from tests.attacks.model_folders import require_refused
from tests.forked import run

NAME = "pytorch_model.bin"


class Calls:
    """Pickled, this calls a function when it is loaded."""

    def __init__(self, function: Callable, *arguments: object):
        self.called = function, arguments

    def __reduce__(self):
        return self.called


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A published folder; its checkpoint is to be replaced."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    published.state_spaces(tmp_path / "theirs")
    return tmp_path / "theirs"


def with_pickle(path: Path, content: bytes) -> None:
    """Replace the pickle in a checkpoint, and keep its tensors."""
    other = path.with_suffix(".other")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, content if entry.filename.endswith(".pkl") else old.read(entry))
    shutil.move(other, path)


def compress(path: Path, content: bytes) -> None:
    other = path.with_suffix(".other")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, content if entry.filename.endswith(".pkl") else old.read(entry))
    shutil.move(other, path)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


NESTED = 2_000_000
ATTACKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "os.system": (lambda path: torch.save({"a": Calls(os.system, "touch ran")}, path), "posix.system"),
    "eval": (lambda path: torch.save({"a": Calls(builtins.eval, "open('ran', 'w')")}, path), "eval"),
    "bare pickle": (lambda path: path.write_bytes(pickle.dumps({"a": Calls(os.system, "touch ran")})), "pickle"),
    "module": (lambda path: torch.save({"a": torch.nn.Linear(2, 2)}, path), "Linear"),
    "a terabyte": (lambda path: torch.save({"a": Calls(bytearray, 10**12)}, path), "memory"),
    "a terabyte of one number": (lambda path: torch.save({"a": torch.ones(1).expand(10**12)}, path), "larger than"),
    "nested": (lambda path: with_pickle(path, b"\x80\x02N" + b"\x85" * NESTED + b"."), "tuple"),
    "nested key": (lambda path: with_pickle(path, b"\x80\x02}N" + b"\x85" * NESTED + b"Ns."), "SIGSEGV"),
    "bomb": (lambda path: compress(path, b"(" * (300 << 20)), "compressed"),
    "long pickle": (lambda path: with_pickle(path, b"\x80\x02" + b"]" * (17 << 20) + b"."), "17,825,795 bytes"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "cut off"),
    "cut in half": (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "cut off"),
    "a flipped byte": (flip, "CRC"),
    "empty": (lambda path: path.write_bytes(b""), "cut off"),
    "Git LFS": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid x\n"), "git lfs pull"),
    "a list": (lambda path: torch.save([torch.ones(3)], path), "list"),
    "a number": (lambda path: torch.save({"a": 3}, path), "a is int"),
    "a name": (lambda path: torch.save({3: torch.ones(3)}, path), "name"),
    "sparse": (lambda path: torch.save({"a": torch.ones(3).to_sparse()}, path), "sparse"),
    "without values": (lambda path: torch.save({"a": torch.ones(3, device="meta")}, path), "meta"),
    "complex": (lambda path: torch.save({"a": torch.ones(3, dtype=torch.complex64)}, path), "complex64"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_checkpoint_is_refused_and_leaves_nothing(folder, tmp_path, attack):
    damage, named = ATTACKS[attack]
    damage(folder / NAME)
    outcome = run("import", "state-spaces", folder, "--out", tmp_path / "out", cwd=tmp_path)
    require_refused(outcome, NAME, "cannot be converted", named)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theirs"]
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", NAME]


def test_a_checkpoint_that_takes_forever_is_given_up(folder, tmp_path, monkeypatch):
    twice = b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60))
    with_pickle(folder / NAME, b"\x80\x02}N\x85" + twice + b"Ns.")  # a key whose hash takes 2^60 steps
    monkeypatch.setattr(pickled, "READ_SECONDS", 2.0)
    with pytest.raises(UserError, match="took longer than 2 s"):
        convert_pickle(folder / NAME, tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


def test_modules_in_the_current_folder_are_not_imported(folder, tmp_path):
    for name in ("torch", "json", "ma2mba"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert run("import", "state-spaces", folder, "--out", tmp_path / "out", cwd=tmp_path).code == 0
    assert not (tmp_path / "ran").exists()


def test_a_link_a_fifo_and_a_foreign_index_are_refused(folder, tmp_path):
    out = ("--out", tmp_path / "out")
    shutil.move(folder / NAME, tmp_path / "elsewhere.bin")
    (folder / NAME).symlink_to(tmp_path / "elsewhere.bin")
    require_refused(run("import", "state-spaces", folder, *out), "leads out")
    (folder / NAME).unlink()
    os.mkfifo(folder / NAME)
    require_refused(run("import", "state-spaces", folder, *out), "not a regular file")
    (folder / NAME).unlink()
    index = f"{NAME}.index.json"
    for content, named in (('{"weight_map": {"a": "../elsewhere.bin"}}', "leads out"), ("{}", index), ("[", index)):
        (folder / index).write_text(content)
        require_refused(run("import", "state-spaces", folder, *out), named)


def test_init_from_refuses_them_too_and_its_cache_stays_clean(folder, tmp_path):
    torch.save({"a": Calls(os.system, f"touch {tmp_path}/ran")}, folder / NAME)
    values = "stage: s\ndata: d\nrun: r\nglobal_batch: 1\nsteps: 1\ntrainable: {projector: 1}\n"
    (tmp_path / "recipe.yaml").write_text(f"{values}init_from: {{language_model: theirs, vision: clip}}\n")
    published.clip(tmp_path / "clip")
    require_refused(run("train", tmp_path / "recipe.yaml"), NAME, "posix.system")
    assert not (tmp_path / "ran").exists()
    assert [path.suffix for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [".lock"]


def test_tensors_that_share_memory_are_written_once_or_apart(tmp_path):
    whole = torch.arange(12.0)
    tensors = {"a": whole, "same": whole, "part": whole[3:7], "turned": whole.view(3, 4).t()}
    torch.save(tensors, tmp_path / NAME)
    converted: list[Path] = []

    def convert(path: Path) -> Path:
        converted.append(tmp_path / "a.safetensors")
        convert_pickle(path, converted[0])
        return converted[0]

    weights = open_any(lambda name: tmp_path / name, convert)
    assert {name: t.read().tolist() for name, t in weights.tensors.items()} == {
        n: t.tolist() for n, t in tensors.items()
    }
    assert "same" not in TensorFile.open(converted[0]).tensors


def test_a_checkpoint_of_an_older_pytorch_is_read(tmp_path):
    torch.save({"a": torch.arange(5)}, tmp_path / NAME, _use_new_zipfile_serialization=False)
    convert_pickle(tmp_path / NAME, tmp_path / "a.safetensors")
    assert TensorFile.open(tmp_path / "a.safetensors").tensors["a"].read().tolist() == [0, 1, 2, 3, 4]
