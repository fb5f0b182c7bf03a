"""The parsers of published annotation files, as evaluation uses them: typed records, bad records, media by name."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ma2mba.annotations import (
    BadRecord,
    MediaFolder,
    RecordError,
    activitynet_qa,
    llava,
    llava_video,
    nextqa,
    perception_test,
    scenewalk,
    scenewalk_segments,
    webvid,
)
from ma2mba.annotations.activitynet_qa import ActivityNetRecord
from ma2mba.annotations.conversation import Exchange
from ma2mba.annotations.llava import LlavaRecord
from ma2mba.annotations.llava_video import LlavaVideoRecord
from ma2mba.annotations.nextqa import NextMCRecord, NextOERecord
from ma2mba.annotations.perception_test import PerceptionRecord
from ma2mba.annotations.scenewalk import Scene, SceneWalkRecord
from ma2mba.annotations.scenewalk_segments import SegmentRecord
from ma2mba.annotations.webvid import WebVidRecord

TALK = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "r"}]
UNMARKED = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}]


def read(read_files, folder, **contents):
    """Records of files written from `contents`: stem_suffix=content."""
    files = []
    for key, content in contents.items():
        name = ".".join(key.rsplit("_", 1))
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
        files.append((name, folder / name))
    return list(read_files(files, folder))


def test_real_nextqa(shared, tmp_path):
    folder = shared / "annotations/nextqa-mc"
    files = [(name, folder / name) for name in ("val.csv", "map_vid_vidorID.json")]
    records = list(nextqa.read_mc(files, tmp_path))
    assert len(records) == 4996
    assert records[0] == NextMCRecord(
        "val.csv line 2",
        "1106/4010069381.mp4",
        "4010069381",
        "6",
        "CH",
        "how do the two man play the instrument",
        ("roll the handle", "tap their feet", "strum the string", "hit with sticks", "pat with hand"),
        0,
    )
    folder = shared / "annotations/nextqa-oe"
    opened = list(nextqa.read_oe([("val.csv", folder / "val.csv")], tmp_path))
    assert len(opened) == 5343
    assert all(type(record) is NextOERecord and record.media == f"{record.video}.mp4" for record in opened)


def test_real_activitynet_qa(shared, tmp_path):
    folder = shared / "annotations/activitynet-qa"
    records = list(activitynet_qa.read([(name, folder / name) for name in ("val_q.json", "val_a.json")], tmp_path))
    assert len(records) == 18000
    assert records[0] == ActivityNetRecord(
        "val_q.json line 1, record 1",
        "v_TIEzvhv6xaI.mp4",
        "v_TIEzvhv6xaI_2",
        "is the no.3 athlete playing indoor",
        "yes",
        3,
    )


def test_llava(tmp_path):
    image = {"id": 7, "image": "a/b.jpg", "conversations": TALK}
    text = {"id": "8", "conversations": UNMARKED}
    assert read(llava.read, tmp_path, l_json=[image, text, {"id": "9"}]) == [
        LlavaRecord("l.json line 1, record 1", "a/b.jpg", "7", True, (Exchange("q", "r"),)),
        LlavaRecord("l.json line 1, record 2", "", "8", False, (Exchange("q", "r"),)),
        BadRecord("l.json line 1, record 3", "9", "", "has no conversations"),
    ]


def test_llava_video(tmp_path):
    good = {"id": "7", "video": "a.mp4", "data_source": "s", "conversations": TALK}
    assert read(llava_video.read, tmp_path, v_json=[good, good | {"video": "/a.mp4"}]) == [
        LlavaVideoRecord("v.json line 1, record 1", "a.mp4", "7", (Exchange("q", "r"),)),
        BadRecord("v.json line 1, record 2", "7", "/a.mp4", "the path /a.mp4 does not stay below the media folder"),
    ]


def test_webvid(tmp_path):
    table = "videoid,contentUrl,duration,page_dir,name\n21179416,u,PT00H00M11S,006001_006050,Aerial shot\n3,u,PT1S\n"
    assert read(webvid.read, tmp_path, w_csv=table) == [
        WebVidRecord("w.csv line 2", "006001_006050/21179416.mp4", "21179416", "Aerial shot"),
        BadRecord("w.csv line 3", "", "", "has 3 fields, not 5"),
    ]


def test_scenewalk(tmp_path):
    spans = [{"start_frame": 0, "end_frame": 40}]
    walk = {"id": "w", "video": "w.mp4", "clip_num": 1, "scenes": spans, "conversations": UNMARKED}
    assert read(scenewalk.read, tmp_path, s_jsonl=f"{json.dumps(walk)}\n{{") == [
        SceneWalkRecord("s.jsonl line 1", "w.mp4", "w", (Scene(0, 40, "r"),)),
        BadRecord(
            "s.jsonl line 2",
            "",
            "",
            "not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))",
        ),
    ]


def test_scenewalk_segments(tmp_path):
    row = {"id": "w", "time_stamp": {"start_frame": 0, "end_frame": 40}, "conversations": UNMARKED}
    pq.write_table(pa.Table.from_pylist([row, row | {"id": None}]), tmp_path / "s.parquet")
    (tmp_path / "w.webm").touch()
    assert list(scenewalk_segments.read([("s.parquet", tmp_path / "s.parquet")], tmp_path)) == [
        SegmentRecord("s.parquet row 1", "w.webm", "w", Scene(0, 40, "r")),
        BadRecord("s.parquet row 2", "", "", "has no id"),
    ]


def test_perception_test(tmp_path):
    question = {"id": 3, "question": "what", "options": ["a", "b", "c"], "answer_id": 1}
    video = {"metadata": {"video_id": "v"}, "mc_question": [question, question | {"answer_id": 3}]}
    assert read(perception_test.read, tmp_path, p_json={"v": video}) == [
        PerceptionRecord("p.json line 1, v, question 1", "v.mp4", "v", 3, "what", ("a", "b", "c"), 1),
        BadRecord("p.json line 1, v, question 2", "3", "", "answer_id is 3, not a number from 0 to 2"),
    ]


def test_videos_are_found_by_their_stem(tmp_path):
    for name in ("a.webm", "a.json", "b.mkv", "b.mp4"):
        (tmp_path / name).touch()
    folder = MediaFolder(tmp_path)
    assert (folder.find("a"), folder.find("c"), folder.find("gone/c")) == ("a.webm", "c.mp4", "gone/c.mp4")
    with pytest.raises(RecordError, match=r"b\.mkv and b\.mp4 both fit b. Keep one"):
        folder.find("b")
    with pytest.raises(RecordError, match="does not stay below"):
        folder.find("../a")
    with pytest.raises(RecordError, match="names a folder"):
        folder.find(".")
