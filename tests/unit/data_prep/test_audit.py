"""Audits report every kind of damage; a repair restores the original bytes or changes nothing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_build_shards import ROOT, contents, material, recipe  # noqa: F401 (material is a fixture)

from data_prep.audit import audit
from data_prep.build import build
from data_prep.encode import encode
from ma2mba.errors import UserError
from ma2mba.shards.manifest import FileEntry, ShardDamaged
from ma2mba.shards.reader import ShardReader, check_file
from ma2mba.video.memory import MEMORY
from tests.unit.data.toy_shards import join_shards, write_shards


@pytest.fixture(scope="module")
def built(material, tmp_path_factory) -> Path:  # noqa: F811
    out = tmp_path_factory.mktemp("built") / "shards"
    build(recipe(material, "audit.yaml", clips_per_part=2), out, workers=2)
    return out


@pytest.fixture
def folder(built, tmp_path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "s"))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def flip_in_frame(folder: Path, sample: str, number: int) -> str:
    """Change a bit within a stored JPEG; returns the file's name."""
    reader = ShardReader(folder)
    row = next(row for row in reader.rows if row.sample_id == sample)
    data = (folder / row.file).read_bytes()
    flip(folder / row.file, data.index(reader.frames(row, number, number + 1)[0]) + 40)
    return row.file


def test_a_sound_folder(built):
    report = audit(built)
    assert report.sound
    assert report.damage == []
    assert report.samples == 9
    assert report.bytes == sum((built / e.name).stat().st_size for e in ShardReader(built).manifest.files)


def test_a_flipped_bit_names_file_and_sample_and_is_repaired(folder, built):
    file = flip_in_frame(folder, "5.mp4", 3)
    report = audit(folder)
    assert {(damage.file, damage.sample) for damage in report.damage} == {(file, ""), (file, "5.mp4")}
    assert not report.sound
    others = {p: p.stat().st_mtime_ns for p in folder.rglob("*.parquet") if p != folder / file}
    assert audit(folder, repair=True).repaired == [file]
    assert contents(folder) == contents(built)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.parquet") if p != folder / file} == others
    assert audit(folder).damage == []


@pytest.mark.parametrize(
    ("name", "how"),
    [("index.parquet", "cut"), ("report.json", "gone"), ("rejects.jsonl", "flipped"), ("tokenizer.json", "gone")],
)
def test_any_other_file_is_repaired_too(folder, built, name, how):
    if how == "flipped":
        flip(folder / name, 20)
    elif how == "cut":
        (folder / name).write_bytes((folder / name).read_bytes()[:30])
    else:
        (folder / name).unlink()
    report = audit(folder, repair=True, workers=2)
    assert {damage.file for damage in report.damage} == {name}
    assert report.sound
    assert contents(folder) == contents(built)


def test_without_a_manifest_nothing_can_be_compared(folder):
    flip(folder / "manifest.json", 60)
    report = audit(folder, repair=True)
    assert [damage.file for damage in report.damage] == ["manifest.json"]
    assert "Build a new folder" in report.unrepaired["manifest.json"]
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="not found"):
        audit(folder)


def test_why_a_repair_is_impossible(folder, built, material, tmp_path):  # noqa: F811
    file = flip_in_frame(folder, "5.mp4", 3)
    damaged = contents(folder)
    (folder / "origin.json").write_text(json.dumps({"recipe": str(tmp_path / "gone.yaml")}))
    assert "does not exist any more. Name the recipe with --source" in audit(folder, repair=True).unrepaired[file]
    other = recipe(material, "other.yaml", clips_per_part=2, jpeg_quality=50)
    assert "jpeg_quality: 95 -> 50" in audit(folder, repair=True, source=other).unrepaired[file]
    moved = Path(shutil.copytree(material, tmp_path / "moved"))
    shutil.copyfile(moved / "media/4.mp4", moved / "media/5.mp4")
    assert "has other bytes" in audit(folder, repair=True, source=moved / "audit.yaml").unrepaired[file]
    assert contents(folder) | {"origin.json": b""} == damaged | {"origin.json": b""}
    assert audit(folder, repair=True, source=material / "audit.yaml").sound
    assert contents(folder)[file] == contents(built)[file]


def test_features_are_repaired_from_pictures_and_encoder(model_folder, tmp_path):
    sizes = [[(3, 4), (37, 2)], [(16, 1), (1, 1)], [(33, 2)]]
    parts = [write_shards(tmp_path / str(i), s, image_size=56, seed=i, prefix=f"{i}-") for i, s in enumerate(sizes)]
    pictures = join_shards(tmp_path / "pictures", parts)
    encode(pictures, str(model_folder), tmp_path / "s", batch=8)
    before = contents(tmp_path / "s")
    name = "payload/part-00001.parquet"
    flip(tmp_path / "s" / name, 900)
    assert audit(tmp_path / "s", repair=True).repaired == [name]
    assert contents(tmp_path / "s") == before
    (tmp_path / "s" / "index.parquet").unlink()
    assert audit(tmp_path / "s", repair=True).sound
    assert contents(tmp_path / "s") == before


def test_the_command(folder):
    def command(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "data_prep", "audit", str(folder), *arguments],
            cwd=ROOT, capture_output=True, text=True, env=os.environ | {"COLUMNS": "250"},
        )  # fmt: skip

    file = flip_in_frame(folder, "5.mp4", 3)
    said = command()
    assert said.returncode == 1
    assert file in said.stdout
    assert "5.mp4" in said.stdout
    said = command("--repair", "--json")
    assert said.returncode == 0
    assert json.loads(said.stdout)["repaired"] == [file]
    said = command()
    assert (said.returncode, "no damage found" in said.stdout) == (0, True)
    (folder / "manifest.json").unlink()
    assert command().returncode == 2


@pytest.mark.parametrize(("kept", "used"), [({"memory": 3 << 30}, 3 << 30), ({}, MEMORY)])
def test_a_repair_has_the_memory_of_the_build(kept, used, folder, monkeypatch):
    """An origin.json of earlier versions does not record it."""
    file, given = flip_in_frame(folder, "5.mp4", 3), []
    origin = json.loads((folder / "origin.json").read_text())
    assert origin.pop("memory") == MEMORY
    (folder / "origin.json").write_text(json.dumps(origin | kept))

    def stop(job, *_):
        given.append(job.memory)
        raise OSError("stopped here")

    monkeypatch.setattr("data_prep.audit.build_missing", stop)
    assert audit(folder, repair=True).unrepaired == {file: "stopped here"}
    assert given == [used]


def test_a_file_that_cannot_be_read_is_damage(folder):
    """/proc/self/mem is a file whose reading fails, as on a bad disk."""
    with pytest.raises(ShardDamaged, match=r"mem: cannot be read \(Input/output error\)"):
        check_file(Path("/proc/self"), FileEntry(name="mem", bytes=0, xxh3=""), content=True)
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").symlink_to("/proc/self/mem")
    (damage,) = audit(folder).damage
    assert "cannot be read" in damage.what
