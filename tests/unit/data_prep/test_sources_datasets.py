"""The reader of every format, on published records where available, and on records that break the format."""

import csv
import json
import random
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.reading import read_sources
from data_prep.recipe import Recipe
from data_prep.sources.turns import DESCRIBE_VIDEO
from ma2mba.annotations.choices import CHOOSE
from ma2mba.annotations.scenewalk import Scene
from ma2mba.errors import UserError
from ma2mba.model.conversation import Turn


def read(folder, *sources):
    """Read sources, each (format, files) or (format, files, other keys)."""
    listed = [
        {"format": form, "annotations": files, "media": "media"} | (rest[0] if rest else {})
        for form, files, *rest in sources
    ]
    (folder / "media").mkdir(exist_ok=True)
    return read_sources(Recipe.model_validate({"stage": "stage2", "tokenizer": "t", "sources": listed}), folder)


def place(folder, name, content):
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return name


def reasons(reading):
    return [(reject.where, reject.reason.removeprefix("malformed record: ")) for reject in reading.rejects]


@pytest.fixture
def real(shared, tmp_path):
    """Return a folder with copies of the published validation files, named {data set}-{file}."""
    for path in (shared / "annotations").glob("*/*.*"):
        shutil.copy(path, tmp_path / f"{path.parent.name}-{path.name}")
    return tmp_path


MAP = "nextqa-mc-map_vid_vidorID.json"


def test_real_nextqa_choices(real):
    reading = read(real, ("nextqa_mc", ["nextqa-mc-val.csv", MAP]))
    assert (reading.records, reading.ungrouped, len(reading.clips), reading.rejects) == (4996, 4996, 570, [])
    clip = next(clip for clip in reading.clips if "2435100235" in clip.name)
    with open(real / "nextqa-mc-val.csv", newline="") as file:
        asked = [row for row in csv.DictReader(file) if row["video"] == "2435100235"]
    assert len(clip.turns) == 2 * len(asked)
    assert clip.turns[:2] == (
        Turn(
            "user",
            "how does the man cycling try to sell the watch to the man in the trishaw\nOptions:\nA. give him catalogue."
            "\nB. show him a video.\nC. show him the watch.\nD. dismount his bicycle.\nE. give him the watch strap."
            f"\n{CHOOSE}",
        ),
        Turn("assistant", "C. show him the watch."),
    )
    paths = json.loads((real / MAP).read_text())
    assert clip.media == real / "media" / f"{paths['2435100235']}.mp4"
    assert clip.sample_id == clip.name == f"{paths['2435100235']}.mp4"


def test_real_nextqa_open_joins_the_choices_about_the_same_video(real):
    alone = read(real, ("nextqa_oe", ["nextqa-oe-val.csv", MAP]))
    assert (alone.records, len(alone.clips), alone.rejects) == (5343, 570, [])
    first = next(clip for clip in alone.clips if "3233088823" in clip.name)
    assert first.turns[:2] == (
        Turn("user", "how is the bulldozer controlled"),
        Turn("assistant", "from the drivers cabin"),
    )
    both = read(real, ("nextqa_mc", ["nextqa-mc-val.csv", MAP]), ("nextqa_oe", ["nextqa-oe-val.csv", MAP]))
    assert (both.records, both.ungrouped, len(both.clips), both.rejects) == (10339, 10339, 570, [])
    assert both.by_dataset["nextqa_mc"] == {"records": 4996, "conversations": 4996, "grouped": 570}
    assert both.by_dataset["nextqa_oe"] == {"records": 5343, "conversations": 5343, "grouped": 0}
    joined = next(clip for clip in both.clips if clip.name == first.name)
    assert joined.turns[-len(first.turns) :] == first.turns
    assert len(joined.turns) > len(first.turns)
    assert joined.dataset == "nextqa_mc"


def test_real_activitynet_qa(real):
    files = ["activitynet-qa-val_q.json", "activitynet-qa-val_a.json"]
    (real / "media").mkdir()
    (real / "media/v_TIEzvhv6xaI.webm").touch()
    (real / "media/v_TIEzvhv6xaI.json").touch()
    reading = read(real, ("activitynet_qa", files))
    assert (reading.records, len(reading.clips), reading.rejects) == (18000, 1800, [])
    assert {len(clip.turns) for clip in reading.clips} == {20}
    clip = reading.clips[0]
    assert clip.name == clip.sample_id == "v_TIEzvhv6xaI.webm"
    assert clip.turns[:2] == (Turn("user", "is the no.3 athlete playing indoor"), Turn("assistant", "yes"))
    assert reading.clips[1].name == "v_7X3wPRKuAsU.mp4"


@pytest.mark.parametrize("name", ["nextqa-mc-val.csv", "nextqa-oe-val.csv", "activitynet-qa-val_a.json"])
def test_real_files_with_one_record_spoiled_lose_that_record_alone(name, real):
    """One answer of a published file is emptied: its line is reported, and all other records are read."""
    path, form = real / name, {"nextqa-mc": "nextqa_mc", "nextqa-oe": "nextqa_oe"}.get(name[:9], "activitynet_qa")
    line = random.Random(name).randint(2, 4000)
    if path.suffix == ".csv":
        with open(path, newline="") as file:
            rows = list(csv.reader(file))
        rows[line - 1][rows[0].index("answer")] = " "
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows(rows)
        files, where = [name, MAP], f"{name} line {line}"
    else:
        records = json.loads(path.read_text())
        records[line - 1]["answer"] = " "
        place(real, name, records)
        files, where = ["activitynet-qa-val_q.json", name], f"{name} line 1, record {line}"
    reading = read(real, (form, files))
    (reject,) = reading.rejects
    assert where in reject.where + reject.reason
    assert "answer is" in reject.reason
    assert reading.ungrouped == reading.records - 1


CHOICES = "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4"
CHOICE = "7,9,4,4,why,{},0,CW,a,b,c,d,{}"


def test_malformed_nextqa_rows(tmp_path):
    lines = [
        CHOICES, CHOICE.format(4, "e"), CHOICE.format(5, "e"), CHOICE.format("b", "e"), CHOICE.format(1, ""),
        "7,9,4", CHOICE.format(1, "e") + ",more", '7,9,4,4,"why\nso",2,0,CW,a,b,c,d,e', CHOICE.format(-1, "e"),
        CHOICE.replace("7,", "8,", 1).format(1, "e"), CHOICE.replace("why", "\udcff").format(1, "e"),
        '7,9,4,4,"why"so,2,0,CW,a,b,c,d,e',
    ]  # fmt: skip
    (tmp_path / "v.csv").write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    reading = read(tmp_path, ("nextqa_mc", ["v.csv", place(tmp_path, "m.json", {"7": "x/7"})]))
    assert reasons(reading) == [
        ("v.csv line 3", "answer is 5, not a number from 0 to 4"),
        ("v.csv line 4", "answer is b, not a number from 0 to 4"),
        ("v.csv line 5", "a4 is empty"),
        ("v.csv line 6", "has 3 fields, not 13"),
        ("v.csv line 7", "has 14 fields, not 13"),
        ("v.csv line 10", "answer is -1, not a number from 0 to 4"),
        ("v.csv line 11", "video 8 is not in the map of videos"),
        ("v.csv line 12", "is not UTF-8"),
        ("v.csv line 13", "not CSV (',' expected after '\"')"),
    ]
    (clip,) = reading.clips
    assert [turn.text[:6] for turn in clip.turns] == ["why\nOp", "E. e.", "why\nso", "C. c."]
    assert (clip.name, reading.rejects[0].media) == ("x/7.mp4", "7")


def test_a_csv_without_its_columns(tmp_path):
    with pytest.raises(UserError, match=r"v\.csv: no column a0, a1"):
        read(tmp_path, ("nextqa_mc", place(tmp_path, "v.csv", CHOICES.partition(",a0")[0] + "\n")))


def test_malformed_activitynet_qa(tmp_path):
    def q(key, **changes):
        return {"video_name": "x", "question": "what", "question_id": key} | changes

    asked = [q("1"), q("2"), q("3"), q("1"), q("5", question=3), q("6", video_name="a/../../x"), q("7")]
    given = [{"answer": "a", "type": 3, "question_id": key} for key in ("1", "1", "5", "6", "8")]
    given += [{"answer": "a", "type": "3", "question_id": "2"}, {"answer": 4, "type": 3, "question_id": "7"}, []]
    place(tmp_path, "t_q.json", asked)
    place(tmp_path, "t_a.json", json.dumps(given, indent=1))
    reading = read(tmp_path, ("activitynet_qa", ["t_q.json", "t_a.json"]))
    assert reasons(reading) == [
        ("t_a.json line 7, record 2", "question 1 is answered already in t_a.json line 2, record 1"),
        ("t_a.json line 37, record 8", "is a list, not an object"),
        ("t_q.json line 1, record 2", "its answer (t_a.json line 27, record 6) type is a str, not a int"),
        ("t_q.json line 1, record 3", "question 3 has no answer in any _a.json"),
        ("t_q.json line 1, record 4", "question 1 appears twice"),
        ("t_q.json line 1, record 5", "question is a int, not a str"),
        ("t_q.json line 1, record 6", "the path v_a/../../x does not stay below the media folder"),
        ("t_q.json line 1, record 7", "its answer (t_a.json line 32, record 7) answer is a int, not a str"),
        ("t_a.json line 22, record 5", "question 8 is in no _q.json"),
    ]
    assert len(reading.clips) == 1
    with pytest.raises(UserError, match="needs files of both kinds"):
        read(tmp_path, ("activitynet_qa", ["t_q.json"]))


PERCEPTION = {
    "metadata": {"split": "train", "video_id": "video_1", "frame_rate": 30.0, "num_frames": 9, "resolution": [4, 4]},
    "mc_question": [
        {
            "id": 3,
            "question": "Is the camera moving or static?",
            "options": ["Static or shaking", "Moving", "I don't know"],
            "answer_id": 1,
            "area": "physics",
            "reasoning": "descriptive",
            "tag": ["motion"],
        }
    ],
}


def test_perception_test(tmp_path):
    good = PERCEPTION["mc_question"][0]
    spoiled = [good | {"answer_id": 3}, good | {"options": ["a", "b"]}, good | {"question": None}, "no object"]
    of_test_split = {key: value for key, value in good.items() if key != "answer_id"}
    content = {
        "video_1": PERCEPTION | {"mc_question": [good, *spoiled, of_test_split, good | {"id": 4}]},
        "video_2": PERCEPTION | {"metadata": {"video_id": "video_2"}, "mc_question": []},
        "video_3": PERCEPTION,
        "video_4": 4,
    }
    text = "{" + ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items()) + "}"
    reading = read(tmp_path, ("perception_test", place(tmp_path, "t.json", text)))
    assert reasons(reading) == [
        ("t.json line 1, video_1, question 2", "answer_id is 3, not a number from 0 to 2"),
        ("t.json line 1, video_1, question 3", "options are not 3 texts"),
        ("t.json line 1, video_1, question 4", "has no question"),
        ("t.json line 1, video_1, question 5", "is a str, not an object"),
        ("t.json line 1, video_1, question 6", "has no answer_id"),
        ("t.json line 2, video_2", "mc_question is empty"),
        ("t.json line 3, video_3", "its key is video_3, but metadata.video_id is video_1"),
        ("t.json line 4, video_4", "is a int, not an object"),
    ]
    (clip,) = reading.clips
    options = "A. Static or shaking.\nB. Moving.\nC. I don't know."
    assert clip.turns[:2] == (
        Turn("user", f"Is the camera moving or static?\nOptions:\n{options}\n{CHOOSE}"),
        Turn("assistant", "B. Moving."),
    )
    assert (len(clip.turns), clip.name, reading.records, reading.ungrouped) == (4, "video_1.mp4", 10, 2)


@pytest.mark.parametrize("text", ["[1]", '{"a": 1', '{"a" 1}', '{"a": 1}}', '{"a": 1,}', "", "\xff"])
def test_a_file_that_is_not_one_object(text, tmp_path):
    (tmp_path / "t.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"t\.json: is empty|t\.json: .*one JSON object|text follows the JSON object"):
        read(tmp_path, ("perception_test", "t.json"))


WEBVID = "videoid,contentUrl,duration,page_dir,name"
REAL_WEBVID = "21179416,https://e.org/1.mp4,PT00H00M11S,006001_006050,Aerial shot winter forest"

WEBVID_NAMELESS = REAL_WEBVID.replace("Aerial shot winter forest", "")


def test_webvid(tmp_path):
    lines = [
        WEBVID, REAL_WEBVID, REAL_WEBVID.replace("PT00H00M11S", "11"), WEBVID_NAMELESS,
        REAL_WEBVID.replace("21179416", "").replace("https", "http"), REAL_WEBVID.replace("006001_006050", "../x"),
        REAL_WEBVID, '3,u,PT1M,a,"Man, old"',
    ]  # fmt: skip
    reading = read(tmp_path, ("webvid", place(tmp_path, "w.csv", "\n".join(lines))))
    assert reasons(reading) == [
        ("w.csv line 3", "duration is 11, not like PT00H00M11S"),
        ("w.csv line 4", "name is empty"),
        ("w.csv line 5", "videoid is empty"),
        ("w.csv line 6", "the path ../x/21179416.mp4 does not stay below the media folder"),
        ("w.csv line 7", "its id is already used in w.csv line 2"),
    ]
    first, second = reading.clips
    assert first.media == tmp_path / "media/006001_006050/21179416.mp4"
    assert first.turns[0].text in DESCRIBE_VIDEO
    assert (first.turns[1].text, second.turns[1].text) == ("Aerial shot winter forest", "Man, old")


def test_llava_pretrain_record_as_published(tmp_path):
    """In this published record the mark comes last."""
    caption = "select luxury furniture 3 - inch gel memory foam mattress topper"
    record = {
        "id": "004539375",
        "image": "00453/004539375.jpg",
        "conversations": [
            {"from": "human", "value": "Render a clear and concise summary of the photo.\n<image>"},
            {"from": "gpt", "value": caption},
        ],
    }
    (clip,) = read(tmp_path, ("llava", place(tmp_path, "l.json", [record]))).clips
    assert clip.turns == (Turn("user", "Render a clear and concise summary of the photo."), Turn("assistant", caption))
    assert (clip.is_image, clip.name) == (True, "00453/004539375.jpg")


def test_llava_video_choices_as_published(tmp_path):
    """Multiple choice as in LLaVA-Video-178K, whose wording nextqa_mc uses."""
    asked = f"<image>\nWhat is it?\nOptions:\nA. food.\nB. training.\n{CHOOSE}"
    record = {
        "id": "8968804598",
        "data_source": "0_30_s_nextqa",
        "video": "NextQA/NExTVideo/1006/8968804598.mp4",
        "conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": "B. training."}],
    }
    (clip,) = read(tmp_path, ("llava_video", place(tmp_path, "v.json", [record]))).clips
    assert clip.turns == (Turn("user", asked.removeprefix("<image>\n")), Turn("assistant", "B. training."))


def segment(video, start, end, caption, **changes):
    times = {"duration": 9.0, "start_fps": 0, "end_fps": 9, "start_frame": start, "end_frame": end}
    talk = [{"from": "human", "value": "Describe"}, {"from": "gpt", "value": caption}]
    row = {"id": video, "url": "u", "time_stamp": times | {"start_time": "0", "end_time": "9"}, "v2t_score": [0.5]}
    return row | {"t2t_score": [0.5], "conversations": talk} | changes


def test_scenewalk_segments(tmp_path):
    rows = [
        segment("a", 40, 72, "two"), segment("b", 0, 9, "alone"), segment("a", 0, 40, "one"),
        segment("c", 9, 9, "nothing"), segment("c", 0, 9, "first"), segment("d", 0, 5, "x"), segment("d", 0, 7, "y"),
        segment("e", 0, 5, "x", time_stamp=None), segment(None, 0, 5, "x"),
        segment("f", 0, 5, "x", conversations=segment("", 0, 1, "z")["conversations"] * 2),
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "s.parquet", row_group_size=3)
    (tmp_path / "media").mkdir()
    (tmp_path / "media/a.mkv").touch()
    reading = read(tmp_path, ("scenewalk_segments", "s.parquet"))
    assert reasons(reading) == [
        ("s.parquet row 4", "start_frame 9 must be at least 0 and below end_frame 9"),
        ("s.parquet row 8", "has no time_stamp"),
        ("s.parquet row 9", "has no id"),
        ("s.parquet row 10", "has 2 captions, not one"),
        ("s.parquet row 5", "another scene is malformed"),
        ("s.parquet row 6", "two scenes of this video start at frame 0"),
    ]
    a, b = reading.clips
    assert (a.name, a.scenes) == ("a.mkv", (Scene(0, 40, "one"), Scene(40, 72, "two")))
    assert (b.name, b.scenes) == ("b.mp4", (Scene(0, 9, "alone"),))
    assert (reading.records, reading.ungrouped) == (10, 6)


def test_a_file_that_is_not_parquet_or_lacks_columns(tmp_path):
    with pytest.raises(UserError, match=r"s\.parquet: not a complete Parquet file"):
        read(tmp_path, ("scenewalk_segments", place(tmp_path, "s.parquet", "no parquet")))
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "s.parquet")
    with pytest.raises(UserError, match=r"no column time_stamp, conversations"):
        read(tmp_path, ("scenewalk_segments", "s.parquet"))


def test_the_same_id_in_two_data_sets_is_not_repeated(tmp_path):
    talk = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a"}]
    place(tmp_path, "l.json", [{"id": "21179416", "image": "a.jpg", "conversations": talk}])
    place(tmp_path, "w.csv", f"{WEBVID}\n{REAL_WEBVID}\n{REAL_WEBVID}")
    reading = read(tmp_path, ("llava", "l.json"), ("webvid", "w.csv", {"name": "films"}))
    assert [(clip.sample_id, clip.dataset) for clip in reading.clips] == [
        ("21179416", "llava"),
        ("films/21179416", "films"),
    ]
    assert reasons(reading) == [("w.csv line 3", "its id is already used in w.csv line 2")]


def test_two_videos_with_the_same_stem_reject_the_record(tmp_path):
    (tmp_path / "media").mkdir()
    for suffix in (".mkv", ".mp4"):
        (tmp_path / f"media/7{suffix}").touch()
    reading = read(tmp_path, ("nextqa_mc", place(tmp_path, "v.csv", f"{CHOICES}\n{CHOICE.format(1, 'e')}")))
    assert reasons(reading) == [("v.csv line 2", "7.mkv and 7.mp4 both fit 7. Keep one")]
