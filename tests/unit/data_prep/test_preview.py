"""`ma2mba data build --dry-run` shows what would be built, and writes nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_bad_records import record, write_recipe
from typer.testing import CliRunner

from data_prep.build import build
from ma2mba.cli.data import app
from ma2mba.errors import UserError


@pytest.fixture
def recipe(tmp_path) -> Path:
    """Three records: one sound, one whose picture is missing, one malformed."""
    Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(tmp_path / "good.png")
    return write_recipe(tmp_path, [record("good.png"), record("gone.png"), {"id": "bad", "image": "good.png"}])


def dry_run(recipe: Path, out: Path, *options: str) -> dict:
    command = ["build", str(recipe), "--out", str(out), "--dry-run", "--json", *options]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0
    return json.loads(done.stdout)


def test_what_would_be_built(recipe, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    found = dry_run(recipe, tmp_path / "shards")
    assert {key: value for key, value in found.items() if key not in ("out", "by_dataset")} == {
        "already_built": False,
        "records": 3,
        "samples": 2,
        "malformed_records": 1,
        "missing_media": 1,
        "shards": 1,
        "shards_to_build": 1,
    }
    assert sorted(tmp_path.rglob("*")) == before


def test_a_share_and_a_finished_build(recipe, tmp_path):
    assert dry_run(recipe, tmp_path / "shards", "--part", "1/2")["shards_to_build"] == 0
    build(recipe, tmp_path / "shards", workers=1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    found = dry_run(recipe, tmp_path / "shards")
    assert (found["already_built"], found["shards_to_build"]) == (True, 0)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_the_text_names_what_would_be_rejected(recipe, tmp_path):
    command = ["build", str(recipe), "--out", str(tmp_path / "shards"), "--dry-run"]
    said = CliRunner().invoke(app, command, catch_exceptions=False).stdout
    rejected = said[said.index("would be rejected") :]
    assert "gone.png" in rejected
    assert "malformed" in rejected
    assert "nothing was written" in said


def test_verbose_shows_what_is_decided(recipe, tmp_path, caplog):
    command = ["build", str(recipe), "--out", str(tmp_path / "shards"), "--workers", "1", "--verbose"]
    CliRunner().invoke(app, command, catch_exceptions=False)
    decided = [record.getMessage() for record in caplog.records]
    assert "annotations: 2 samples in 1 shards, 1 rejected" in decided
    assert any(line.startswith("build: 1 of 1 shards, decoded by pyav in 1 workers (local)") for line in decided)


def test_another_builds_folder_is_refused(recipe, tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "mine.txt").touch()
    command = ["build", str(recipe), "--out", str(tmp_path / "shards"), "--dry-run"]
    with pytest.raises(UserError, match="holds other files and no shards"):
        CliRunner().invoke(app, command, catch_exceptions=False)
