"""Data sets in the format of the hub: every format is read, no code runs, nothing outside the folder is opened."""

import json
from pathlib import Path

import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Image, Value, config

from data_prep.clips import Clip
from data_prep.sources import find_format, format_names
from ma2mba.annotations.huggingface import find_files
from ma2mba.annotations.records import BadRecord
from ma2mba.annotations.scenewalk import Scene
from ma2mba.errors import UserError
from tests.unit.annotations.hub_layout import llava_records, readme, save, scene_records, segment_records, turns

CHOICE = {"video": 4010069381, "frame_count": 9, "width": 4, "height": 4, "question": "why", "answer": 3, "qid": 5}
CHOICE |= {"type": "CW"} | {f"a{i}": f"because {i}" for i in range(5)}
CLIP = {
    "videoid": 21179416,
    "contentUrl": "u",
    "duration": "PT00H00M11S",
    "page_dir": "006001_006050",
    "name": "forest",
}
ASKED = {"video_name": "x", "question": "what", "question_id": "x_1"}
MARKED = turns("<image>\nq", "r")
QUESTION = {"id": 0, "question": "what", "options": ["a", "b", "c"], "answer_id": 1}
PERCEIVED = [{"metadata": {"video_id": f"v{i}"}, "mc_question": [QUESTION] * (i + 1)} for i in range(2)]

ROWS: dict[str, list[dict]] = {
    "llava": [{"id": "a", "image": "a.png", "conversations": MARKED}, {"id": "b", "conversations": turns("q", "r")}],
    "llava_video": llava_records("caption"),
    "webvid": [CLIP, CLIP | {"videoid": 3, "name": " "}],
    "scenewalk": scene_records(),
    "scenewalk_segments": segment_records(),
    "nextqa_mc": [CHOICE, CHOICE | {"answer": 5}],
    "nextqa_oe": [CHOICE | {"answer": "so"}, CHOICE | {"answer": ""}],
    "activitynet_qa": [ASKED | {"answer": "yes", "type": 3}, ASKED | {"answer": "", "type": 3}],
    "perception_test": PERCEIVED,
}
"""Format -> rows of a data set on the hub, most of them with a bad one."""


def in_files(form: str, folder: Path) -> list[tuple[str, Path]]:
    """Write the rows of a format as it is published, and return the files."""
    rows, (path, other) = ROWS[form], (folder / "a.json", folder / "b.json")
    if form in ("webvid", "nextqa_mc", "nextqa_oe"):
        path = folder / "a.csv"
        path.write_text("\n".join(",".join(map(str, line)) for line in [rows[0], *(row.values() for row in rows)]))
    elif form == "scenewalk_segments":
        save(rows, path := folder / "a.parquet")
    elif form == "scenewalk":
        save(rows, path := folder / "a.jsonl")
    elif form == "perception_test":
        path.write_text(json.dumps({row["metadata"]["video_id"]: row for row in rows}))
    elif form == "activitynet_qa":
        rows = [row | {"question_id": str(i)} for i, row in enumerate(rows)]
        save([{key: row[key] for key in ASKED} for row in rows], path := folder / "a_q.json")
        save(
            [{key: row[key] for key in ("question_id", "answer", "type")} for row in rows], other := folder / "a_a.json"
        )
        return [("a", path), ("b", other)]
    else:
        save(rows, path)
    return [("a", path)]


def what(items: list[Clip | BadRecord]) -> list:
    """Clips and bad records without their places and, of ActivityNet-QA, without the ids that the files need."""
    return [
        (item.name, item.turns, item.scenes, item.is_image) if isinstance(item, Clip) else item.reason.split(") ")[-1]
        for item in items
    ]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet", ".arrow"])
@pytest.mark.parametrize("form", format_names())
def test_every_format_reads_the_same_from_a_data_set(form, suffix, tmp_path):
    save(ROWS[form], tmp_path / "set" / f"train{suffix}")
    read = find_format(form).read
    found = what(list(read(find_files("set", tmp_path, None, None), tmp_path)))
    assert len(found) == (3 if form == "perception_test" else len(ROWS[form]))
    assert found == what(list(read(in_files(form, tmp_path), tmp_path)))


@pytest.mark.parametrize("form", ["webvid", "nextqa_mc", "nextqa_oe", "perception_test"])
def test_the_published_file_may_lie_in_a_data_set(form, tmp_path):
    """CSV, and the JSON object of PerceptionTest on one line or several; types are not guessed."""
    for indent in (None, 1):
        (tmp_path / f"set{indent}").mkdir()
        files = in_files(form, tmp_path / f"set{indent}")
        if indent and form == "perception_test":
            files[0][1].write_text(json.dumps(json.loads(files[0][1].read_text()), indent=indent))
        read = find_format(form).read
        expected = what(list(read(files, tmp_path)))
        assert expected
        assert what(list(read(find_files(f"set{indent}", tmp_path, None, None), tmp_path))) == expected


def records(folder: Path, **chosen: str | None) -> list:
    files = find_files(str(folder), folder, chosen.get("name"), chosen.get("split"))
    return [record for _, file in files for _, record in file.records()]


def test_values_are_those_of_json(tmp_path):
    """Neither dates nor mixed types change; a null is a missing key, at any depth; media are not decoded."""
    rows = [{"id": "2020-01-01", "n": None, "s": [{"a": 1, "b": None}]}, {"id": 5, "n": 1.5, "s": ["x", {"a": None}]}]
    expected = [{"id": "2020-01-01", "s": [{"a": 1}]}, {"id": 5, "n": 1.5, "s": ["x", {}]}]
    for name in ("a.json", "a.jsonl"):
        save(rows, tmp_path / name.replace(".", "") / name)
        assert records(tmp_path / name.replace(".", "")) == expected
    features = Features({"id": Value("string"), "image": Image()})
    (tmp_path / "media").mkdir()
    data = Dataset.from_list([{"id": "a", "image": {"bytes": b"no picture", "path": "a.png"}}], features=features)
    data.to_parquet(str(tmp_path / "media/a.parquet"))
    assert records(tmp_path / "media") == [{"id": "a", "image": {"bytes": b"no picture", "path": "a.png"}}]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".arrow"])
def test_a_fraction_in_one_record_spoils_no_other(suffix, tmp_path):
    """A table stores the column of a fraction as floats."""
    rows = segment_records()[:2]
    rows[1]["time_stamp"]["end_frame"] = 16.5
    save(rows, tmp_path / f"a{suffix}")
    read = find_format("scenewalk_segments").read
    whole, bad = read(find_files(str(tmp_path), tmp_path, None, None), tmp_path)
    assert whole.scenes == (Scene(24, 40, "two"),)
    assert bad.reason == "end_frame is a float, not a int"


def test_files_of_a_split_may_have_different_columns(tmp_path):
    for i, row in enumerate([{"id": "a"}, {"id": 7, "more": [1.0]}]):
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / f"train-{i}.parquet")
    assert records(tmp_path) == [{"id": "a"}, {"id": 7, "more": [1.0]}]


def test_the_path_may_hold_links_and_parents(tmp_path):
    """The name in messages is the path as given."""
    save([{"id": "a"}], tmp_path / "real/set/a.json")
    (tmp_path / "link").symlink_to("real/set")
    for path in ("real/set", "./real/../link", "link", str(tmp_path / "link")):
        ((name, file),) = find_files(path, tmp_path, None, None)
        assert name == f"{path}/a.json"
        assert [record for _, record in file.records()] == [{"id": "a"}]


def test_a_split_keeps_the_order_of_its_card(tmp_path):
    for name in ("a", "b", "c"):
        save([{"id": name}], tmp_path / f"{name}.json")
    readme(tmp_path, {"one": {"train": "c.json", "test": "a.json"}, "all": {"train": "*.json"}})
    assert records(tmp_path, name="one", split="train") == [{"id": "c"}]
    assert [record["id"] for record in records(tmp_path, name="all")] == ["a", "b", "c"]


def test_the_switches_are_restored(tmp_path):
    before = config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE
    save([{"id": "a"}], tmp_path / "a.parquet")
    records(tmp_path)
    with pytest.raises(UserError):
        find_files(str(tmp_path), tmp_path, "gone", None)
    assert before == (config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE)


def test_a_script_is_refused_and_does_not_run(tmp_path):
    save([{"id": "a"}], tmp_path / "set/a.json")
    for name in ("set.py", "load.py"):
        (tmp_path / "set" / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        with pytest.raises(UserError, match=rf"set: contains the script {name}, but ma2mba runs no code"):
            records(tmp_path / "set")
        (tmp_path / "set" / name).unlink()
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def secret(tmp_path) -> Path:
    """A file beside the data set `set`."""
    save([{"id": "secret"}], tmp_path / "secret.json")
    save([{"id": "a"}], tmp_path / "set/a.json")
    return tmp_path / "secret.json"


@pytest.mark.parametrize(
    "named",
    ["SECRET", "../secret.json", "x/../../secret.json", "https://example.com/a.json", "hf://datasets/a/b/c.json",
     "file:///SECRET", "zip://a.json::b.zip", "~/secret.json"],
)  # fmt: skip
@pytest.mark.parametrize("place", ["path", "list", "config", "data_dir", ".huggingface.yaml"])
def test_a_card_cannot_name_a_file_outside_the_folder(secret, named, place, tmp_path):
    named = named.replace("SECRET", str(secret))
    split = {"split": "train", "path": ["a.json", named] if place == "list" else named}
    one = {"data_dir": named} if place == "data_dir" else {"data_files": named if place == "config" else [split]}
    configs = json.dumps([{"config_name": "x"} | one, {"config_name": "y", "data_files": "a.json"}])
    card = f"configs: {configs}\n" if place.startswith(".") else f"---\nconfigs: {configs}\n---\n"
    file = tmp_path / "set" / (place if place.startswith(".") else "README.md")
    file.write_text(card)
    with pytest.raises(UserError, match="which is not inside the folder") as caught:
        records(tmp_path / "set", name="y")
    assert str(caught.value).startswith(f"{file}: names {named}")


def test_a_link_cannot_lead_out_of_the_folder(secret, tmp_path):
    (tmp_path / "set/b.json").symlink_to(secret)
    with pytest.raises(UserError, match=r"set/b\.json leads out of the folder .*, to .*secret\.json"):
        records(tmp_path / "set")
    (tmp_path / "set/b.json").unlink()
    (tmp_path / "set/README.md").symlink_to(secret)
    with pytest.raises(UserError, match=r"set/README\.md leads out of the folder"):
        records(tmp_path / "set")


def test_a_saved_folder_cannot_name_a_file_outside(secret, tmp_path):
    Dataset.from_list([{"id": "a"}]).save_to_disk(str(tmp_path / "saved"))
    assert records(tmp_path / "saved") == [{"id": "a"}]
    (tmp_path / "saved/state.json").write_text('{"_data_files": [{"filename": "../secret.json"}]}')
    with pytest.raises(UserError, match=r"saved/\.\./secret\.json leads out of the folder"):
        records(tmp_path / "saved")
    (tmp_path / "saved/dataset_dict.json").write_text('{"splits": ["../other"]}')
    Dataset.from_list([{"id": "b"}]).save_to_disk(str(tmp_path / "other"))
    with pytest.raises(UserError, match=r"state\.json leads out of the folder"):
        records(tmp_path / "saved")
    (tmp_path / "saved/dataset_dict.json").write_text('{"split": []}')
    with pytest.raises(UserError, match="not a complete folder of save_to_disk"):
        records(tmp_path / "saved")


def test_a_snapshot_in_the_cache_of_the_hub_is_a_folder_of_links(tmp_path):
    save([{"id": "a"}], tmp_path / "blobs/0123.json")
    (tmp_path / "snapshots/c0ffee").mkdir(parents=True)
    (tmp_path / "snapshots/c0ffee/a.json").symlink_to("../../blobs/0123.json")
    assert records(tmp_path / "snapshots/c0ffee") == [{"id": "a"}]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.tsv", "a\tb\n", r"the configuration default sets sep='\\t', which is not supported"),
        ("a.json.gz", "x", r"a\.json\.gz: .* consists of json files; this file is not one. Convert or unpack it"),
        ("a.txt", "x", "most files are of the kind text"),
        ("README.md", "---\nconfigs: 3\n---\n", r"README\.md: its configs cannot be read"),
        ("README.md", "---\n[\n---\n", r"README\.md: its configs cannot be read"),
        (".gitattributes", "x", "cannot be opened as a data set: "),
    ],
)
def test_a_folder_that_is_no_data_set(name, content, said, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=said):
        records(tmp_path)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_damage_names_the_file(name, tmp_path):
    save([{"id": f"{i}", "text": "x" * 999} for i in range(99)], tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    kind = name[2:].capitalize()
    with pytest.raises(UserError, match=rf"{name}: not a complete {kind} file \(.*\). Download or copy it again"):
        records(tmp_path)


def test_a_data_set_of_another_format_is_refused(tmp_path):
    save([{"id": "a"}], tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: no column video, .* It has the columns id"):
        list(find_format("nextqa_mc").read(find_files(str(tmp_path), tmp_path, None, None), tmp_path))
