"""Shard folders that somebody else made: nothing outside is read or written, and the impossible is refused unread."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
import yaml
from PIL import Image

from data_prep.build import build
from data_prep.encode import encode
from data_prep.toy.words import save_tokenizer
from ma2mba.data.dataset import Dataset
from ma2mba.errors import UserError
from ma2mba.files import sha256_file
from ma2mba.shards.format import INDEX_SCHEMA, PAYLOAD_SCHEMA, IndexRow, rows_to_table
from ma2mba.shards.index import read_index
from ma2mba.shards.manifest import FeatureInfo, ShardDamaged, file_entry, hash_json
from ma2mba.shards.reader import ShardReader, find_damage
from ma2mba.shards.writer import write_index
from tests.forked import call, run
from tests.unit.conftest import model, model_folder, tokenizer  # noqa: F401 (fixtures)
from tests.unit.data.toy_shards import noise_jpegs, write_shards

PAYLOAD = "payload/part-00000.parquet"
SECRET = b"the secret key of another folder\n"


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    """Four pictures, their annotations and a recipe."""
    folder = tmp_path_factory.mktemp("material")
    (folder / "media").mkdir()
    save_tokenizer(folder / "tokenizer.json")
    for i in range(4):
        Image.fromarray(np.full((40, 40, 3), 50 * i, np.uint8)).save(folder / "media" / f"{i}.png")
    talk = [{"from": "human", "value": "<image>\nDescribe the picture."}, {"from": "gpt", "value": "a red star."}]
    records = [{"id": f"p{i}", "image": f"{i}.png", "conversations": talk} for i in range(5)]
    (folder / "pairs.json").write_text(json.dumps(records))
    source = {"format": "llava", "annotations": "pairs.json", "media": "media"}
    recipe = {"stage": "stage1", "tokenizer": "tokenizer.json", "image_size": 28, "clips_per_part": 2}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"sources": [source]}))
    return folder


@pytest.fixture(scope="module")
def built(material, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("built") / "shards"
    build(material / "recipe.yaml", out, workers=1)
    return out


@pytest.fixture
def folder(built, tmp_path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "s"))


@pytest.fixture
def toy(tmp_path) -> Path:
    """Samples s0 (3 frames), s1 (70 frames), s2 (text) and s3 (2 frames)."""
    return write_shards(tmp_path / "toy", [(3, 4), (70, 5), (0, 3), (2, 2)], weights=(1.0, 2.0))


@pytest.fixture
def victim(tmp_path) -> Path:
    path = tmp_path / "victim"
    path.write_bytes(SECRET)
    return path


def sign(folder: Path, **changes: Any) -> None:
    """Change the manifest, and make all its checksums right again."""
    path = folder / "manifest.json"
    content = json.loads(path.read_bytes()) | changes
    content.pop("checksum")
    for entry in content["files"]:
        if (folder / entry["name"]).is_file() and not isinstance(changes.get("files"), list):
            entry |= file_entry(folder, entry["name"]).model_dump()
    path.write_text(json.dumps(content | {"checksum": hash_json(content)}))


def change_rows(folder: Path, change: Callable[[list[IndexRow]], None]) -> None:
    """Change the index of a folder, with right checksums and counts."""
    rows = read_index(folder / "index.parquet").rows
    change(rows)
    write_index(folder / "index.parquet", rows)
    frames, tokens = sum(max(row.frames, 0) for row in rows), sum(len(row.token_ids) for row in rows)
    sign(folder, samples=len(rows), frames=frames, tokens=tokens)


def listed_as(folder: Path, name: str, target: Path) -> None:
    """List `target` under `name` in the manifest, with the content that the stranger put beside."""
    entries = json.loads((folder / "manifest.json").read_bytes())["files"]
    entry = file_entry(target.parent, target.name).model_dump() | {"name": name}
    sign(folder, files=[*entries, entry])


# names and links that lead out


@pytest.mark.parametrize("name", ["../victim", "payload/../../victim", "{absolute}"])
def test_a_repair_overwrites_nothing_outside(folder, victim, tmp_path, name):
    """Before, the file `victim` beside the repaired files replaced the one outside."""
    planted = folder / "victim"
    planted.write_bytes(b"overwritten")
    listed_as(folder, name.format(absolute=victim), planted)
    for command in (("data", "audit", folder, "--repair"), ("data", "audit", folder), ("inspect", folder)):
        outcome = run(*command)
        assert outcome.refused, outcome
        assert "victim" in outcome.err
        assert outcome.peak_mb < 1000
    assert victim.read_bytes() == SECRET


@pytest.mark.parametrize("name", ["", "a\0b", "payload/\x1b[31m.parquet", "\ud800", "notes.txt", "payload"])
def test_names_that_no_shard_has(folder, name):
    entries = json.loads((folder / "manifest.json").read_bytes())["files"]
    sign(folder, files=[*entries, {"name": name, "bytes": 0, "xxh3": ""}])
    outcome = run("inspect", folder)
    assert outcome.refused, outcome
    assert "\x1b[31m.parquet" not in outcome.err


@pytest.mark.parametrize(
    "name", ["manifest.json", "index.parquet", "tokenizer.json", "report.json", "rejects.jsonl", "payload", PAYLOAD]
)
def test_links_that_lead_out(folder, tmp_path, name):
    """The content outside is the right one, so all checksums fit: the link alone is wrong."""
    outside = tmp_path / "outside"
    shutil.move(folder / name, outside)
    (folder / name).symlink_to(outside)
    before = contents(outside)
    for command in (("inspect", folder), ("data", "encode", folder, "--encoder", "none", "--out", tmp_path / "out")):
        outcome = run(*command)
        assert outcome.refused, outcome
        assert "symbolic link that leads out" in outcome.err
    outcome = run("data", "audit", folder, "--repair")
    assert outcome.refused or (outcome.code == 1 and name == "manifest.json")
    assert contents(outside) == before
    assert not (tmp_path / "out").exists()


def contents(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {str(file): file.read_bytes() for file in files}


def test_links_that_stay_inside_are_followed(folder):
    (folder / "payload").rename(folder / "frames")
    (folder / "payload").symlink_to("frames")
    assert run("data", "audit", folder).code == 0


def test_a_repair_folder_that_is_a_link(folder, victim, tmp_path):
    outside = tmp_path / "outside"
    (outside / "payload").mkdir(parents=True)
    (folder / ".repair").symlink_to(outside)
    (folder / "report.json").unlink()
    outcome = run("data", "audit", folder, "--repair")
    assert outcome.refused, outcome
    assert contents(outside) == {}


# a work folder that somebody else left


def unfinished(folder: Path) -> Path:
    """Turn a finished folder into one whose shards are all built, but not joined."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    work = folder / ".build"
    work.mkdir()
    (work / "recipe.json").write_text(json.dumps(manifest["recipe"]))
    rows = read_index(folder / "index.parquet").rows
    entries = {entry["name"]: entry for entry in manifest["files"]}
    rejects = [json.loads(line) for line in (folder / "rejects.jsonl").read_bytes().splitlines()]
    for n in range(3):
        name = f"payload/part-{n:05d}.parquet"
        write_index(work / f"part-{n:05d}.parquet", [row for row in rows if row.file == name])
        notes = {"payload": entries.get(name), "rejects": rejects if n == 2 else [], "silent": 0}
        (work / f"part-{n:05d}.json").write_text(json.dumps(notes))
    for name in ("manifest.json", "index.parquet", "report.json", "rejects.jsonl", "tokenizer.json", "origin.json"):
        (folder / name).unlink()
    return folder


def resume(material: Path, folder: Path):
    return run("data", "build", material / "recipe.yaml", "--out", folder, "--workers", "1")


def test_a_healthy_work_folder_is_resumed(material, built, folder):
    outcome = resume(material, unfinished(folder))
    assert outcome.code == 0, outcome
    names = ("index.parquet", "report.json", "rejects.jsonl", "tokenizer.json", "manifest.json")
    assert {n: (folder / n).read_bytes() for n in names} == {n: (built / n).read_bytes() for n in names}


@pytest.mark.parametrize("name", [".build/lock", ".build/recipe.json", ".build/part-00000.json"])
def test_files_of_the_work_folder_that_are_links(material, folder, victim, name):
    """Before, a build truncated what `.build/lock` pointed to."""
    path = unfinished(folder) / name
    path.unlink(missing_ok=True)
    path.symlink_to(victim)
    outcome = resume(material, folder)
    assert outcome.refused, outcome
    assert SECRET.decode().strip() not in outcome.err
    assert victim.read_bytes() == SECRET


@pytest.mark.parametrize("name", [".build", "payload"])
def test_folders_of_a_build_that_are_links(material, folder, tmp_path, name):
    unfinished(folder)
    (folder / ".build/part-00000.json").unlink()
    outside = tmp_path / "outside"
    shutil.move(folder / name, outside)
    (folder / name).symlink_to(outside)
    before = contents(outside)
    outcome = resume(material, folder)
    assert outcome.refused, outcome
    assert contents(outside) == before


@pytest.mark.parametrize("name", [".build/lock", ".build/recipe.json", ".build/part-00000.json"])
def test_fifos_in_the_work_folder(material, folder, name):
    path = unfinished(folder) / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    outcome = run("data", "build", material / "recipe.yaml", "--out", folder, "--workers", "1", limit_s=60)
    assert outcome.refused, outcome


NOTES = {
    "a name outside": {"payload": {"name": "../victim", "bytes": len(SECRET), "xxh3": ""}, "rejects": [], "silent": 0},
    "another shard": {"payload": {"name": "payload/part-00001.parquet", "bytes": 1, "xxh3": ""}, "rejects": []},
    "a list": [],
    "null": None,
    "no entry": {"payload": 3, "rejects": [], "silent": 0},
    "rejects of another kind": {"payload": None, "rejects": [{"sample_id": []}], "silent": 0},
    "huge numbers": {"payload": None, "rejects": [], "silent": "9" * 99},
}


@pytest.mark.parametrize("what", NOTES)
def test_notes_of_somebody_else(material, folder, victim, what):
    (unfinished(folder) / ".build/part-00000.json").write_text(json.dumps(NOTES[what]))
    outcome = resume(material, folder)
    assert outcome.refused, outcome
    assert "part-00000.json" in outcome.err
    assert not (folder / "manifest.json").exists()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 900 + "1" + "}" * 900, "\udcff", "[]", "1e999", "null"])
@pytest.mark.parametrize("name", ["recipe.json", "part-00000.json"])
def test_other_json_in_the_work_folder(material, folder, name, text):
    (unfinished(folder) / ".build" / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    outcome = resume(material, folder)
    assert outcome.refused, outcome


@pytest.mark.parametrize("name", ["report.json", "rejects.jsonl"])
@pytest.mark.parametrize(
    "text", ["", "[]", "{}\n3", '{"by_dataset": 1}', "\udcff", '{"by_dataset": {"a": {"b": NaN}}}']
)
def test_other_json_in_a_finished_folder(material, folder, name, text):
    """`build` shows the report of a folder that is already finished."""
    (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    outcome = resume(material, folder)
    assert outcome.refused or (outcome.code == 0 and (name, text) == ("rejects.jsonl", "")), outcome


# origins that somebody else wrote


def test_a_repair_reads_no_recipe_that_a_stranger_names(folder, tmp_path):
    """The recipe is a FIFO here: before, the repair hung. A file would have been opened."""
    os.mkfifo(tmp_path / "recipe.yaml")
    (folder / "origin.json").write_text(json.dumps({"recipe": str(tmp_path / "recipe.yaml")}))
    (folder / "report.json").unlink()
    outcome = run("data", "audit", folder, "--repair", "--json", limit_s=60)
    assert outcome.code == 1, outcome
    report = json.loads(outcome.out)
    assert "If you trust the recipe, name it with --source" in report["unrepaired"]["report.json"]
    assert report["sources"] == []


def test_a_repair_from_ones_own_build_or_from_a_given_recipe(material, built, folder, tmp_path, monkeypatch):
    (folder / "report.json").unlink()
    outcome = run("data", "audit", folder, "--repair", "--json")
    assert outcome.code == 0, outcome
    assert json.loads(outcome.out)["sources"] == [f"recipe {(material / 'recipe.yaml').resolve()}"]
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user"))
    (folder / "report.json").unlink()
    assert run("data", "audit", folder, "--repair").code == 1
    outcome = run("data", "audit", folder, "--repair", "--source", material / "recipe.yaml")
    assert outcome.code == 0, outcome
    assert (folder / "report.json").read_bytes() == (built / "report.json").read_bytes()


@pytest.mark.parametrize(
    "text", ["[]", "[" * 100_000, '{"recipe": 3}', '{"recipe": null}', "\udcff", '{"memory": 1e999}']
)
def test_an_origin_that_is_none(folder, text):
    (folder / "origin.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    (folder / "report.json").unlink()
    outcome = run("data", "audit", folder, "--repair", "--json")
    assert outcome.code == 1
    assert "Name the recipe with --source" in json.loads(outcome.out)["unrepaired"]["report.json"]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"device": "meta"}, "on the device 'meta'"),
        ({"device": ["cpu"]}, "on the device"),
        ({"batch": 10**9}, "in batches of 1000000000"),
        ({"batch": "8"}, "in batches of 8"),
    ],
)
def test_features_of_a_strange_device_or_batch(model_folder, tmp_path, changes, what):  # noqa: F811
    pictures = write_shards(tmp_path / "pictures", [(3, 4)], image_size=56)
    out = tmp_path / "features"
    encode(pictures, str(model_folder), out, batch=8)
    recipe = json.loads((out / "manifest.json").read_bytes())["recipe"] | changes
    sign(out, recipe=recipe)
    (out / "index.parquet").unlink()
    outcome = run("data", "audit", out, "--repair", "--json")
    assert outcome.code == 1, outcome
    assert what in json.loads(outcome.out)["unrepaired"]["index.parquet"]


def test_an_encoder_that_a_stranger_names_is_not_loaded(model_folder, tmp_path, monkeypatch):  # noqa: F811
    pictures = write_shards(tmp_path / "pictures", [(3, 4)], image_size=56)
    out = tmp_path / "features"
    encode(pictures, str(model_folder), out, batch=8)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user"))
    (out / "index.parquet").unlink()
    outcome = run("data", "audit", out, "--repair", "--source", pictures, "--json")
    assert "name it with --encoder" in json.loads(outcome.out)["unrepaired"]["index.parquet"]
    outcome = run("data", "audit", out, "--repair", "--source", pictures, "--encoder", model_folder)
    assert outcome.code == 0, outcome


# manifests


MANIFESTS: dict[str, bytes] = {
    "a list": b"[]",
    "null": b"null",
    "a number": b"7",
    "deep": b"[" * 200_000,
    "not UTF-8": b'{"format_version": "\xff"}',
    "a huge number": b'{"format_version": ' + b"9" * 9999 + b"}",
    "a key twice": b'{"format_version": 2, "format_version": 2}',
    "millions of values": b"[" + b"[]," * 4_000_000 + b"[]]",
    "empty": b"",
}


@pytest.mark.parametrize("what", MANIFESTS)
def test_files_that_are_no_manifest(folder, what):
    (folder / "manifest.json").write_bytes(MANIFESTS[what])
    outcome = run("inspect", folder)
    assert outcome.refused, outcome
    assert outcome.peak_mb < 1000
    assert "manifest.json" in outcome.err
    outcome = run("data", "audit", folder)
    assert outcome.code == 1
    assert outcome.peak_mb < 1000


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    "changes",
    [
        {"samples": 4},
        {"samples": -1},
        {"samples": 10**30},
        {"frames": 3},
        {"tokens": 10**9},
        {"fps": 0},
        {"fps": float("inf")},
        {"fps": float("nan")},
        {"fps": 1e300},
        {"image_size": 10**6},
        {"image_size": 0},
        {"kind": "features"},
        {"sources": []},
        {"sources": None},
        {"sources": [{"name": "llava", "format": "llava", "weight": 1.0, "samples": 3}]},
        {"sources": [{"name": "llava", "format": "llava", "weight": float("nan"), "samples": 4}]},
        {"sources": [{"name": "llava", "format": "llava", "weight": -1.0, "samples": 4}]},
        {"files": {}},
        {"recipe": nested(400)},
        {"recipe": []},
        {"unknown\nkey": 1},
        {"format_version": [2]},
    ],
    ids=lambda changes: str(changes)[:50],
)
def test_values_that_a_manifest_cannot_have(folder, changes):
    if changes == {"samples": 4}:
        change_rows(folder, lambda rows: None)
        changes = {"samples": 5}
    sign(folder, **changes)
    outcome = run("inspect", folder)
    assert outcome.refused, outcome
    assert len(outcome.err.strip().splitlines()) == 1
    assert run("data", "audit", folder).code in (1, 2)


def _holes(folder: Path, name: str, size: int) -> None:
    """List a file of holes in the manifest, with a checksum that nobody computes."""
    os.truncate(folder / name, size)
    entries = json.loads((folder / "manifest.json").read_bytes())["files"]
    sign(folder, files=[entry | ({"bytes": size} if entry["name"] == name else {}) for entry in entries])


@pytest.mark.parametrize("name", ["index.parquet", "rejects.jsonl", "report.json", "tokenizer.json"])
def test_a_terabyte_of_holes_is_refused_at_once(folder, name):
    _holes(folder, name, 1 << 40)
    outcome = run("inspect", folder, limit_s=60)
    assert outcome.refused, outcome
    assert "more than the memory of this machine" in outcome.err


def test_rejects_without_a_line_end_take_no_memory(folder):
    _holes(folder, "rejects.jsonl", 2_000_000_000)
    sign(folder)
    outcome = run("inspect", folder)
    assert outcome.code == 0, outcome
    assert outcome.peak_mb < 1000


@pytest.mark.parametrize("name", ["manifest.json", "index.parquet", "tokenizer.json", PAYLOAD])
@pytest.mark.parametrize("kind", ["fifo", "loop", "device", "folder"])
def test_no_regular_file(folder, name, kind):
    path = folder / name
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path.name if kind == "loop" else "/dev/zero")
    outcome = run("inspect", folder, limit_s=60)
    assert outcome.refused, outcome
    outcome = run("data", "audit", folder, limit_s=60)
    assert outcome.code in (1, 2), outcome
    assert "Traceback" not in outcome.err


# values that an index cannot have


def at(row: int, **changes: Any) -> Callable[[list[IndexRow]], None]:
    def change(rows: list[IndexRow]) -> None:
        rows[row] = replace(rows[row], **changes)

    return change


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


LONG = np.arange(70, dtype=np.float64)
IMPOSSIBLE = {
    "token after the vocabulary": (1, {"token_ids": ints(1, 32), "supervised": np.array([0, 1], bool)}),
    "huge token": (1, {"token_ids": ints(2**31 - 1, 3), "supervised": np.array([0, 1], bool)}),
    "negative token": (1, {"token_ids": ints(3, -100), "supervised": np.array([0, 1], bool)}),
    "fewer labels": (1, {"supervised": np.array([True])}),
    "fewer positions": (1, {"frame_positions": ints(*[0] * 69)}),
    "more positions": (1, {"frame_positions": ints(*[0] * 71)}),
    "position after the text": (1, {"frame_positions": ints(*[0] * 69, 999)}),
    "negative position": (1, {"frame_positions": ints(-1, *[0] * 69)}),
    "falling positions": (1, {"frame_positions": ints(3, *[2] * 69)}),
    "fewer times": (1, {"timestamps": LONG[:-1]}),
    "time NaN": (1, {"timestamps": np.where(LONG == 5, np.nan, LONG)}),
    "time infinite": (1, {"timestamps": np.where(LONG == 69, np.inf, LONG)}),
    "falling times": (1, {"timestamps": LONG[::-1].copy()}),
    "negative time": (1, {"timestamps": LONG - 1}),
    "frames without a file": (1, {"file": ""}),
    "file outside": (1, {"file": "../victim"}),
    "file of another kind": (1, {"file": "index.parquet"}),
    "file that is not there": (1, {"file": "payload/part-00001.parquet"}),
    "file without frames": (2, {"file": PAYLOAD}),
    "negative row group": (1, {"first_row_group": -1}),
    "row groups of another sample": (1, {"first_row_group": 0}),
    "negative frames": (2, {"frames": -1}),
    "duration NaN": (1, {"duration": float("nan")}),
    "duration infinite": (1, {"duration": float("inf")}),
    "negative duration": (1, {"duration": -1.0}),
    "sample twice": (1, {"sample_id": "s0"}),
    "unknown status": (1, {"status": "rejected"}),
    "partial without a reason": (1, {"status": "partial"}),
    "unknown data set": (1, {"dataset": "other"}),
    "negative bytes": (1, {"source_bytes": -1}),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_impossible_values_name_the_sample(toy, what):
    row, changes = IMPOSSIBLE[what]
    change_rows(toy, at(row, **changes))
    with pytest.raises(ShardDamaged, match=r"index\.parquet: ") as error:
        ShardReader(toy)
    assert "\n" not in str(error.value)
    assert f"sample s{0 if what == 'sample twice' else row}: " in str(error.value)
    assert any(damage.file == "index.parquet" for damage in find_damage(toy))


def test_an_impossible_index_is_one_line_for_every_command(toy, tmp_path):
    change_rows(toy, at(1, token_ids=ints(1, 32), supervised=np.array([0, 1], bool)))
    for command in (("inspect", toy), ("data", "encode", toy, "--encoder", "none", "--out", tmp_path / "out")):
        outcome = run(*command)
        assert outcome.refused, outcome
        assert "sample s1: token 1 is 32; the tokenizer ends at 31" in outcome.err
    outcome = run("data", "audit", toy, "--json")
    assert (outcome.code, json.loads(outcome.out)["damage"][0]["sample"]) == (1, "s1")


@pytest.mark.parametrize(
    "damage",
    [
        lambda table: table.drop(["reason"]),
        lambda table: table.append_column("more", pa.array([1] * table.num_rows)),
        lambda table: table.set_column(7, "frames", pa.array([1] * table.num_rows, pa.int64())),
        lambda table: table.set_column(0, "sample_id", pa.array(["a"] * table.num_rows).dictionary_encode()),
        lambda table: table.set_column(0, "sample_id", pa.array([None, *["a"] * (table.num_rows - 1)])),
        lambda table: table.set_column(1, INDEX_SCHEMA.field(1), pa.array([[None, 1]] * 4, INDEX_SCHEMA.field(1).type)),
    ],
)
def test_columns_of_another_kind(toy, damage):
    pq.write_table(damage(rows_to_table(read_index(toy / "index.parquet").rows)), toy / "index.parquet")
    sign(toy)
    with pytest.raises(ShardDamaged, match=r"index\.parquet: cannot be read"):
        ShardReader(toy)


# small files that would take much memory


def bomb(toy: Path, write: Callable[[Path], None]) -> None:
    assert call(lambda: write(toy / "index.parquet")).code == 0  # the tests' own memory would count
    sign(toy)


def one_row(**changes: Any) -> pa.Table:
    values = {
        field.name: [] if pa.types.is_list(field.type) else "" if field.type == pa.string() else 0
        for field in INDEX_SCHEMA
    }
    return pa.table({name: [value] for name, value in (values | changes).items()}, schema=INDEX_SCHEMA)


def many_tokens(path: Path) -> None:
    """150 million tokens in 150 samples, all alike."""
    lists = pa.ListArray.from_arrays(pa.array([0, 1_000_000], pa.int32()), pa.array(np.ones(1_000_000, np.int32)))
    table = one_row().set_column(1, INDEX_SCHEMA.field(1), lists)
    with pq.ParquetWriter(path, INDEX_SCHEMA, compression="zstd") as writer:
        for _ in range(150):
            writer.write_table(table)


def long_string(path: Path) -> None:
    pq.write_table(
        one_row(reason="x" * 300_000_000), path, compression="zstd", use_dictionary=False, write_statistics=False
    )


def many_rows(path: Path) -> None:
    table = pa.concat_tables([one_row()] * 1000).combine_chunks()
    table = pa.concat_tables([table] * 1500).combine_chunks()
    pq.write_table(table, path, compression="zstd")


def prefixes(path: Path) -> None:
    """Strings that share their beginning: DELTA_BYTE_ARRAY stores a megabyte once, and counts."""
    columns = {"source": "DELTA_BYTE_ARRAY"}
    table = pa.concat_tables([one_row(source="x" * 1_000_000)] * 300).combine_chunks()
    pq.write_table(table, path, compression="zstd", use_dictionary=False, column_encoding=columns)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def footer_of_columns(path: Path, row_groups: int = 8, columns: int = 500_000) -> None:
    """A footer with millions of columns of three bytes each."""
    row_group = b"\x19\xfc" + varint(columns) + b"\x26\x00\x00" * columns + b"\x16\x00\x16\x00\x00"
    schema = b"\x19\x1c" + b"\x48\x01a\x00"
    content = (
        b"\x15\x02" + schema + b"\x16\x00" + b"\x19" + bytes([row_groups << 4 | 12]) + row_group * row_groups + b"\x00"
    )
    path.write_bytes(b"PAR1" + content + len(content).to_bytes(4, "little") + b"PAR1")


BOMBS = [many_tokens, long_string, many_rows, prefixes, footer_of_columns]


@pytest.mark.parametrize("write", BOMBS)
def test_an_index_that_grows_in_memory(toy, write):
    bomb(toy, write)
    for command in (("inspect", toy), ("data", "audit", toy)):
        outcome = run(*command, memory_gb=8.0)
        assert outcome.peak_mb < 1000
        assert outcome.refused or (outcome.code == 1 and "audit" in command), outcome
        assert "Traceback" not in outcome.err


def test_a_limit_can_be_raised(toy, monkeypatch):
    bomb(toy, many_tokens)
    outcome = run("inspect", toy)
    assert "MA2MBA_LIMIT_INDEX_EXPANSION" in outcome.err
    assert "would take more than 256 MB" in outcome.err


@pytest.mark.parametrize("write", [footer_of_columns])
def test_a_payload_that_grows_in_memory(toy, write):
    assert call(lambda: write(toy / PAYLOAD)).code == 0
    sign(toy)
    outcome = call(lambda: Dataset([toy], 28, 4)[0], memory_gb=8.0)
    assert outcome.peak_mb < 1000
    assert "ShardDamaged" in outcome.err
    outcome = run("data", "audit", toy, memory_gb=8.0)
    assert (outcome.code, outcome.peak_mb < 1000) == (1, True)


@pytest.mark.parametrize("length", [0, 7, 11, 2**31, 2**32 - 1])
def test_a_footer_that_states_another_length(toy, length):
    data = (toy / "index.parquet").read_bytes()
    (toy / "index.parquet").write_bytes(data[:-8] + length.to_bytes(4, "little") + b"PAR1")
    sign(toy)
    outcome = run("inspect", toy)
    assert outcome.refused, outcome


def test_a_page_that_states_more_values_than_its_footer(toy):
    """The reader would decode as many values as the page states."""
    path = toy / "index.parquet"
    chunk = pq.read_metadata(path).row_group(0).column(1)
    data = bytearray(path.read_bytes())
    count = chunk.num_values
    place = data.index(bytes([0x15, *varint(2 * count)]), chunk.data_page_offset)
    data[place + 1] ^= 2
    path.write_bytes(data)
    sign(toy)
    with pytest.raises(ShardDamaged, match=r"token_ids.* has pages that differ from the footer"):
        ShardReader(toy)


# payload files


LARGE = PAYLOAD_SCHEMA.set(3, pa.field("frame", pa.large_binary(), nullable=False))


def rewrite_payload(folder: Path, schema: pa.Schema | None = None, size: int = 64, **options: Any) -> None:
    """Write the payload again, each row group of at most `size` rows, with other options."""
    with pq.ParquetFile(folder / PAYLOAD) as file:
        groups = [file.read_row_group(i) for i in range(file.num_row_groups)]
    options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True} | options
    with pq.ParquetWriter(folder / PAYLOAD, schema or groups[0].schema, **options) as writer:
        for group in groups:
            writer.write_table(group.cast(schema) if schema else group, row_group_size=size)
    sign(folder)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"compression": "zstd"}, "is compressed"),
        ({"use_dictionary": True}, "has a dictionary"),
        ({"size": 32}, "has 5 row groups; at most 4 belong here"),
        ({"size": 63}, "has 5 row groups|row groups of sample s1 do not hold its 70 frames"),
        ({"schema": LARGE}, "columns are"),
    ],
    ids=["compressed", "dictionary", "more row groups", "other row groups", "columns"],
)  # fmt: skip
def test_a_payload_of_another_form(toy, options, what):
    rewrite_payload(toy, **options)
    with pytest.raises(ShardDamaged, match=what) as error:
        _ = [Dataset([toy], 28, 4)[i] for i in range(4)]
    assert "sample s" in str(error.value)
    assert {damage.file for damage in find_damage(toy)} == {PAYLOAD}


def replace_frames(folder: Path, frame: bytes) -> None:
    """Put `frame` in place of the first frame of the payload, with right checksums."""
    with pq.ParquetFile(folder / PAYLOAD) as file:
        groups = [file.read_row_group(i) for i in range(file.num_row_groups)]
    frames = [frame, *groups[0].column("frame").to_pylist()[1:]]
    groups[0] = groups[0].set_column(3, groups[0].schema.field(3), pa.array(frames, groups[0].schema.field(3).type))
    with pq.ParquetWriter(
        folder / PAYLOAD, groups[0].schema, compression="none", use_dictionary=False, write_page_checksum=True
    ) as writer:
        for group in groups:
            writer.write_table(group)
    sign(folder)


def jpeg(size: int) -> bytes:
    return noise_jpegs(np.random.default_rng(1), 1, size)[0]


def enlarged(data: bytes) -> bytes:
    """Return a JPEG whose header states 65,000 x 65,000 pixels: 12 GB when decoded."""
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + (65_000).to_bytes(2, "big") * 2 + data[place + 4 :]


FRAMES = {
    "another size": jpeg(56),
    "twelve gigabytes": enlarged(jpeg(28)),
    "cut": jpeg(28)[:-200],
    "no JPEG": b"x" * 500,
    "empty": b"",
    "PNG": b"\x89PNG\r\n\x1a\n" + bytes(200),
}


@pytest.mark.parametrize("what", FRAMES)
def test_frames_that_are_no_picture_of_the_folder(toy, what):
    replace_frames(toy, FRAMES[what])

    def read() -> None:
        with pytest.raises(UserError, match=r"frame 0 of sample s0") as error:
            Dataset([toy], 28, 4)[0]
        assert "\n" not in str(error.value)

    outcome = call(read)
    assert outcome.code == 0, outcome
    assert outcome.peak_mb < 1000
    outcome = run("data", "audit", toy, "--json")
    assert outcome.code == 1
    assert "s0" in {damage["sample"] for damage in json.loads(outcome.out)["damage"]}


def test_encode_names_the_frame(model_folder, tmp_path):  # noqa: F811
    shards = write_shards(tmp_path / "s", [(3, 4)], image_size=56)
    replace_frames(shards, jpeg(28))
    outcome = run("data", "encode", shards, "--encoder", model_folder, "--out", tmp_path / "out", "--device", "cpu")
    assert outcome.refused, outcome
    assert "frame 0 of sample s0 has 28x28 pixels, but the manifest says 56x56" in outcome.err


@pytest.mark.parametrize(("bits", "what"), [(0x7F80, "infinity"), (0xFFC0, "NaN")])
def test_features_that_are_not_finite(tmp_path, bits, what):
    info = FeatureInfo(tokens=4, width=8, encoder="e")
    shards = write_shards(tmp_path / "s", [(3, 4)], features=info)
    replace_frames(shards, np.full(32, bits, np.uint16).tobytes())
    with pytest.raises(UserError, match="frames 0 to 2 of sample s0 has features that are not finite"):
        Dataset([shards], 28, 4)[0]
    assert "not finite" in run("data", "audit", shards, "--json").out


def test_features_of_another_width(tmp_path):
    shards = write_shards(tmp_path / "s", [(3, 4)], features=FeatureInfo(tokens=4, width=8, encoder="e"))
    sign(shards, features={"tokens": 4, "width": 4, "encoder": "e"})
    with pytest.raises(ShardDamaged, match="sample s0 is damaged"):
        Dataset([shards], 28, 4)[0]


# tokenizers


def test_a_tokenizer_that_the_token_ids_do_not_come_from(toy):
    content = json.loads((toy / "tokenizer.json").read_bytes())
    vocabulary = content["model"]["vocab"]
    vocabulary["w0"], vocabulary["w1"] = vocabulary["w1"], vocabulary["w0"]
    (toy / "tokenizer.json").write_text(json.dumps(content))
    sign(toy)
    with pytest.raises(UserError, match=r"tokenizer\.json: not the tokenizer that the manifest names"):
        Dataset([toy], 28, 4)
    assert "is not the tokenizer that made the token ids" in run("data", "audit", toy, "--json").out
    sign(toy, tokenizer_sha256=sha256_file(toy / "tokenizer.json"))
    Dataset([toy], 28, 4)


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "\udcff", "[" + "[]," * 5_000_000 + "[]]"], ids=range(4))
def test_a_tokenizer_that_is_no_json(toy, text):
    (toy / "tokenizer.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    sign(toy)
    outcome = run("inspect", toy)
    assert outcome.refused, outcome
    assert outcome.peak_mb < 1000


def test_a_picture_is_decoded_strictly():
    """A JPEG whose end is missing decodes to grey without a strict decoder."""
    data = jpeg(28)
    whole = simplejpeg.decode_jpeg(data)
    assert not np.array_equal(whole, simplejpeg.decode_jpeg(data[:-200], strict=False))
