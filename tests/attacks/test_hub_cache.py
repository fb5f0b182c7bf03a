"""Folders in the cache of the Hugging Face hub, whose files are links to `blobs`, are read; no other link is."""

import os
import shutil
from pathlib import Path

import pytest

from ma2mba.files import OutsideFolder, inside
from ma2mba.shards.reader import ShardReader
from tests.attacks.model_folders import make_model, make_run
from tests.forked import run
from tests.unit.data.toy_shards import write_shards


def cached(folder: Path, repository: Path) -> Path:
    """Move a folder's files to `blobs` of a repository, and return the snapshot that links to them."""
    snapshot = repository / "snapshots" / "0123"
    (repository / "blobs").mkdir(parents=True)
    for number, file in enumerate(path for path in sorted(folder.rglob("*")) if path.is_file()):
        link, blob = snapshot / file.relative_to(folder), repository / "blobs" / str(number)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(file, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def test_a_model_a_run_and_shards_are_read(tmp_path):
    make_run(tmp_path / "run")
    model = cached(make_model(tmp_path / "model"), tmp_path / "hub" / "models--a--model")
    shards = cached(write_shards(tmp_path / "shards", [(3, 4), (0, 3)]), tmp_path / "hub" / "datasets--a--shards")
    trained = cached(tmp_path / "run", tmp_path / "hub" / "models--a--run")
    out = ("--out", tmp_path / "out")
    for command in (("inspect", model), ("inspect", shards), ("inspect", trained), ("export", trained, *out)):
        outcome = run(*command)
        assert outcome.code == 0, (command, outcome.out, outcome.err)
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    reader = ShardReader(shards)
    assert len(reader.frames(reader.rows[0])) == 3


@pytest.mark.parametrize("target", ["secret", "hub/models--a--b/other", "hub/models--a--c/blobs/secret"])
def test_no_other_link_is_followed(target, tmp_path):
    snapshot = tmp_path / "hub" / "models--a--b" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (tmp_path / target).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / target).write_text("secret")
    (snapshot / "config.json").symlink_to(tmp_path / target)
    with pytest.raises(OutsideFolder):
        inside(snapshot, "config.json", snapshot)


def test_blobs_that_are_a_link_are_not_followed(tmp_path):
    repository = tmp_path / "models--a--b"
    (repository / "snapshots" / "0123").mkdir(parents=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "key").write_text("secret")
    (repository / "blobs").symlink_to(tmp_path / "home")
    (repository / "snapshots" / "0123" / "config.json").symlink_to("../../blobs/key")
    with pytest.raises(OutsideFolder):
        inside(repository / "snapshots" / "0123", "config.json", repository)
