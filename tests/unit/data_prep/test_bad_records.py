"""A record, image or video that cannot be used is rejected and named; the build continues without it."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

from data_prep.build import build
from data_prep.clips import Reject
from data_prep.reading import encodable
from data_prep.toy.words import save_tokenizer
from ma2mba.annotations import BadRecord, MediaFolder, RecordError
from ma2mba.shards.reader import ShardReader
from ma2mba.video import probe
from ma2mba.video.errors import MediaError, file_size
from ma2mba.video.pictures import read_image

HALF = "\ud83d"
BAD_EXIF = (
    b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"  # turned by 90 degrees, so that it is rewritten,
    b"\x01-\0\x05\0\0\0\x01\0\0\0\x26\0\0\0\0\0\0\0H\0\0\0\x01"  # and a table of whole numbers that holds a fraction
)


def record(name: str, **changes) -> dict:
    talk = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "four"}]
    return {"id": name, "image": name, "conversations": talk} | changes


def write_recipe(folder: Path, records: list[dict]) -> Path:
    """Write a recipe of these records into the folder of their pictures."""
    save_tokenizer(folder / "tokenizer.json")
    (folder / "r.json").write_text(json.dumps(records))
    source = {"format": "llava", "annotations": "r.json", "media": "."}
    content = {"stage": "stage1", "tokenizer": "tokenizer.json", "image_size": 32, "sources": [source]}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    return folder / "recipe.yaml"


def picture_build(folder: Path, records: list[dict]):
    """Build these records; return (report, rejects)."""
    return build(write_recipe(folder, records), folder / "shards", workers=1)


def test_each_bad_record_is_rejected_and_the_good_ones_are_built(tmp_path):
    picture = Image.fromarray(np.full((8, 8, 3), 7, np.uint8))
    picture.save(tmp_path / "good.png")
    picture.save(tmp_path / "exif.jpg", exif=BAD_EXIF)
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    long = "x" * 300 + ".png"
    talk = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": f"four {HALF}"}]
    records = [
        record("exif.jpg"),
        record(long),
        record("loop.jpg"),
        record("text", image="good.png", conversations=talk),
        record(f"id{HALF}", image="good.png"),
        record("path", image=f"{HALF}.png"),
        record("good.png"),
    ]
    _, rejects = picture_build(tmp_path, records)
    assert [row.sample_id for row in ShardReader(tmp_path / "shards").rows] == ["good.png"]
    reasons = {reject.sample_id: reject.reason for reject in rejects}
    half = "malformed record: a text contains an unpaired surrogate"
    assert (reasons["text"], reasons["id\\ud83d"]) == (half, half)
    assert reasons["path"] == "malformed record: the path '\\ud83d.png' is not valid Unicode"
    assert reasons["exif.jpg"].startswith("not a readable image (")
    assert reasons[long] == "cannot be opened (File name too long)"
    assert reasons["loop.jpg"] == "cannot be opened (Too many levels of symbolic links)"


def test_a_lack_of_memory_is_not_reported_as_damage(tmp_path, monkeypatch):
    Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(tmp_path / "a.png")

    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr("ma2mba.video.pictures.ImageOps.exif_transpose", fail)
    with pytest.raises(MemoryError):
        read_image(tmp_path / "a.png")


def test_a_video_whose_end_cannot_be_read_is_rejected():
    """/proc/self/mem is a file whose reading fails, as on a bad disk."""
    container = SimpleNamespace(format=SimpleNamespace(name="mov,mp4"))
    with pytest.raises(MediaError, match="cannot be read to its end"):
        probe.missing_bytes(Path("/proc/self/mem"), container)


@pytest.mark.parametrize("name", ["gone", "file/below", "nul\0", HALF])
def test_a_medium_that_is_not_there(name, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MediaError, match="no such file"):
        file_size(tmp_path / name)


def test_a_folder_that_cannot_be_listed_rejects_the_record(tmp_path):
    with pytest.raises(RecordError, match="cannot be listed \\(File name too long\\)"):
        MediaFolder(tmp_path).find("x" * 300 + "/video")


def test_rejects_can_be_printed():
    rejected = encodable(BadRecord("r.json line 1", HALF, "é", "from 😀"))
    assert rejected == Reject("\\ud83d", "é", "r.json line 1", "malformed record: from 😀")
