"""Every benchmark is read in its published layout, and malformed files are refused by file, record and reason."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ma2mba.annotations.choices import split_options
from ma2mba.errors import UserError
from ma2mba.evaluation.benchmarks import BENCHMARKS, read_benchmark
from ma2mba.evaluation.benchmarks.video_mme import srt_lines
from ma2mba.evaluation.items import Line
from ma2mba.evaluation.parsing import judge
from tests.unit.annotations.local_hub import COMMIT, serve
from tests.unit.evaluation.published import MAKERS, QUESTIONS, save_json, save_parquet, video


@pytest.fixture(scope="module", params=list(MAKERS))
def published(request, tmp_path_factory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    MAKERS[request.param](folder)
    return request.param, folder


@pytest.fixture
def folder(request, tmp_path) -> Path:
    MAKERS[request.param](tmp_path)
    return tmp_path


def of(name: str):
    return pytest.mark.parametrize("folder", [name], indirect=True)


def test_every_benchmark_has_a_maker():
    assert BENCHMARKS.keys() == MAKERS.keys()
    assert all(benchmark.name == name for name, benchmark in BENCHMARKS.items())


def test_all_questions_are_read_with_their_videos(published):
    name, folder = published
    items = read_benchmark(name, folder)
    assert len(items) == QUESTIONS
    assert len({item.id for item in items}) == QUESTIONS
    for item in items:
        assert item.medium.is_relative_to(folder)
        assert item.medium.is_dir() if item.picture_rate else item.medium.is_file()
        assert item.question in item.prompt
        assert all(option in item.prompt for option in item.options)
        assert (item.gold_index is None) == (not item.options) == BENCHMARKS[name].open_ended
        assert item.gold_index is None or item.options[item.gold_index] == item.gold
        assert judge(item.gold, item.gold, item.options)
    assert len({item.gold_index for item in items}) == (1 if BENCHMARKS[name].open_ended else len(items[0].options))


def test_a_missing_video_keeps_its_place(published, tmp_path):
    name, folder = published
    (tmp_path / "videos").mkdir()
    items = read_benchmark(name, folder, media=tmp_path)
    assert len(items) == QUESTIONS
    assert not any(item.medium.exists() for item in items)
    assert all(item.medium.is_relative_to(tmp_path) for item in items)


def test_two_questions_never_share_an_id(tmp_path):
    MAKERS["video-mme"](tmp_path)
    rows = pq.read_table(tmp_path / "videomme/test-00000-of-00001.parquet").to_pylist()
    save_parquet(tmp_path / "videomme/test-00000-of-00001.parquet", [rows[0], rows[0]])
    assert [item.id for item in read_benchmark("video-mme", tmp_path)] == ["001-1", "001-1#2"]


@of("video-mme")
def test_the_prompt_of_video_mme_is_its_authors(folder):
    first = read_benchmark("video-mme", folder)[0]
    assert first.prompt == (
        "Select the best answer to the following multiple-choice question based on the video. Respond with only the "
        "letter (A, B, C, or D) of the correct option.\nWhich of the 0 items appears more than the others?\nA. Apples."
        "\nB. Candles.\nC. Berries.\nD. The three kinds are of the same number.\nThe best answer is:"
    )
    assert (first.task, first.duration_group, first.gold) == ("Counting Problem", "short", "Apples.")
    asked = read_benchmark("video-mme", folder, subtitles=True)
    assert asked[0].subtitles == (Line(0.0, 1.5, "In 1999 we"), Line(1.5, 3.0, "counted apples 42"))
    assert asked[0].prompt == first.prompt
    assert asked[0].asked([0, 1, 2]) == (
        f"This video's subtitles are listed below:\nIn 1999 we\ncounted apples 42\n{first.prompt}"
    )
    assert asked[0].asked([2.9]) == f"This video's subtitles are listed below:\ncounted apples 42\n{first.prompt}"
    assert asked[0].asked([3.0]) == first.prompt, "nothing is spoken at this frame"
    assert asked[-1].asked([0, 1, 2]) == asked[-1].prompt, "a video without subtitles"


def test_an_srt_file_is_read():
    content = (
        "1\r\n00:00:01,000 --> 00:00:02,500\r\n{\\an8}<i>7</i>\r\n8\r\n\r\n2\n1:00:02.0 --> 1:00:03.0 align:start\n"
        "end\n\n"
        "3\n00:00:05,000 --> 00:00:06,000\n<font></font>\n"
    )
    assert srt_lines(content) == (Line(1.0, 2.5, "7 8"), Line(3602.0, 3603.0, "end"))
    assert srt_lines("") == ()


@of("longvideobench")
def test_longvideobench_takes_subtitles_of_the_video_alone(folder):
    items = read_benchmark("longvideobench", folder, subtitles=True)
    assert items[0].subtitles == (Line(0.5, 1.5, "in the film"),), "lines of the rest of the film are left out"
    assert items[2].subtitles == (Line(0.25, 1.25, "hello"), Line(2.0, 3.0, "there"))
    assert (
        items[2].asked([0, 1, 2]).startswith("hello\nthere\nQuestion: On the screen 2, what is there?\nA. a thing 0\n")
    )
    assert items[2].prompt.endswith("D. a thing 3\nAnswer with the option's letter from the given choices directly.")
    assert {len(item.options) for item in items} == {4, 5}
    assert {item.duration_group for item in items} == {"15", "60", "600", "3600"}
    (folder / "subtitles/86CxyhFV9M0_en.json").write_text('[{"start": "x"}]')
    with pytest.raises(UserError, match=r"86CxyhFV9M0_en\.json: not a list of subtitles"):
        read_benchmark("longvideobench", folder, subtitles=True)


@of("longvideobench")
def test_longvideobench_is_read_from_the_table_on_the_hub(folder):
    records = json.loads((folder / "lvb_val.json").read_text())
    expected = read_benchmark("longvideobench", folder)
    for record in records:
        options = [*record.pop("candidates"), "N/A"]
        record |= {f"option{i}": options[i] for i in range(5)}
    save_parquet(folder / "validation-00000-of-00001.parquet", records)
    (folder / "lvb_val.json").unlink()
    assert read_benchmark("longvideobench", folder) == expected


@of("mvbench")
def test_mvbench_cuts_and_folders_of_pictures(folder):
    items = {item.id: item for item in read_benchmark("mvbench", folder)}
    assert Counter(item.task for item in items.values()) == {
        "action_sequence": 8,
        "moving_count": 4,
        "fine_grained_pose": 4,
        "episodic_reasoning": 4,
    }
    cut = items["action_sequence-1"]
    assert (cut.start, cut.end, cut.picture_rate) == (1.0, 3.5, None)
    pictures = items["episodic_reasoning-2"]
    assert (pictures.start, pictures.end, pictures.picture_rate) == (0.0, 3.0, 3.0)
    assert items["fine_grained_pose-1"].medium.suffix == ".avi"
    assert items["moving_count-1"].start is None
    shutil.move(folder / "video/star/Charades_v1_480", folder / "video/star/Charades_segment")
    again = {item.id: item for item in read_benchmark("mvbench", folder)}["action_sequence-1"]
    assert (again.start, again.end) == (None, None), "videos of this folder are cut already"
    assert again.medium.is_file()


@of("mlvu")
def test_mlvu_skips_published_questions_without_a_right_answer_and_names_them(folder, caplog):
    items = read_benchmark("mlvu", folder)
    assert (
        "2_needle.json line 1, record 4 is skipped: as published, its answer is not among its candidates" in caplog.text
    )
    assert Counter(item.task for item in items) == {"plotQA": 8, "findNeedle": 8, "count": 4}
    assert BENCHMARKS["mlvu"].mean_over_tasks


@of("mlvu")
def test_blank_options_count_as_published(folder):
    records = json.loads((folder / "json/1_plotQA.json").read_text())
    records[0] |= {"candidates": ["2", "5", "10", ""], "answer": ""}
    records[1] |= {"candidates": ["", "There is one", "There is none", ""], "answer": "there is one."}
    save_json(folder / "json/1_plotQA.json", records)
    first, second = read_benchmark("mlvu", folder)[:2]
    assert (first.gold, first.gold_index) == ("", 3)
    assert "(D) \nOnly" in first.prompt
    assert (second.gold, second.gold_index) == ("There is one", 1)


def test_mlvu_is_read_from_the_table_on_the_hub(tmp_path):
    rows = [
        {
            "video_name": "a.mp4",
            "question": "What is it?",
            "candidates": ["a car", "a cat"],
            "answer": "B",
            "task_type": "ego",
        },
        {
            "video_name": "a.mp4",
            "question": "What is it?\n(A) a car\n(B) a cat",
            "candidates": ["a car", "a cat"],
            "answer": "(A) a car",
            "task_type": "ego",
        },
    ]
    save_parquet(tmp_path / "data/test-00000-of-00001.parquet", rows)
    first, second = read_benchmark("mlvu", tmp_path)
    assert (first.gold, second.gold) == ("a cat", "a car")
    assert first.question == second.question == "What is it?"
    assert first.prompt == second.prompt


@pytest.mark.parametrize(
    ("kind", "place"), [("plotQA", "1_plotQA"), ("findNeedle", "2_needle"), ("topic_reasoning", "7_topic_reasoning")]
)
@pytest.mark.parametrize("table", ["data/test-00000-of-00001.parquet", "mlvu.jsonl"])
def test_mlvu_finds_the_published_videos_of_a_table_that_holds_all_tasks(kind, place, table, tmp_path):
    row = {"video_name": "a.mp4", "question": "What?", "candidates": ["car", "cat"], "answer": "B", "task_type": kind}
    path = tmp_path / table
    if table.endswith(".parquet"):
        save_parquet(path, [row])
    else:
        path.write_text(json.dumps(row) + "\n")
    video(tmp_path, f"video/{place}/a.mp4")
    (item,) = read_benchmark("mlvu", tmp_path)
    assert item.medium == tmp_path / "video" / place / "a.mp4"


@of("lvbench")
def test_lvbench_splits_options_from_the_question(folder):
    first = read_benchmark("lvbench", folder)[0]
    assert first.options == ("1636", "1366", "1363", "1633")
    assert first.question == "What year appears in caption 0?"
    assert (first.id, first.task) == ("0", "key information retrieval")


def test_lvbench_is_read_from_a_table(tmp_path):
    row = {"video_path": "videos/a.mp4", "question": "Who?", "options": ["A. he", "B. she"], "answer": "B"}
    save_json(tmp_path / "annotations/test.json", [row, row | {"options": ["he", "she"], "question_type": "reasoning"}])
    first, second = read_benchmark("lvbench", tmp_path)
    assert first.options == second.options == ("he", "she")
    assert (first.id, second.id, second.task) == ("1", "2", "reasoning")
    assert first.medium == tmp_path / "all_videos/videos/a.mp4"


@of("longtimescope")
def test_longtimescope_asks_its_input_as_it_is(folder):
    items = read_benchmark("longtimescope", folder)
    assert items[0].prompt == (
        "What is the secret word 0?\nA. apple\nB. pear\nC. plum\nD. fig\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert {(item.task, item.duration_group) for item in items} == {
        (kind, length) for kind in ("QA", "OCR") for length in ("60", "28800")
    }


@of("nextqa-mc")
def test_nextqa_finds_videos_by_the_map_or_by_number(folder):
    assert read_benchmark("nextqa-mc", folder)[0].medium == folder / "NExTVideo/1106/4010069381.mp4"
    (folder / "map_vid_vidorID.json").unlink()
    shutil.move(folder / "NExTVideo/1106", folder / "videos")
    shutil.rmtree(folder / "NExTVideo")
    assert read_benchmark("nextqa-mc", folder)[0].medium == folder / "videos/4010069381.mp4"


@of("nextqa-mc")
def test_a_split_is_chosen(folder):
    shutil.copy(folder / "val.csv", folder / "train.csv")
    lines = (folder / "val.csv").read_text().splitlines(keepends=True)
    (folder / "test.csv").write_text("".join(lines[:6]))
    assert len(read_benchmark("nextqa-mc", folder)) == 5, "test is the default where it is there"
    assert len(read_benchmark("nextqa-mc", folder, split="val")) == 20
    with pytest.raises(UserError, match=r"--split dev: unknown. This benchmark has the splits test, val, train"):
        read_benchmark("nextqa-mc", folder, split="dev")


@of("activitynet-qa")
def test_activitynet_questions_are_joined_with_their_answers(folder):
    first, second = read_benchmark("activitynet-qa", folder)[:2]
    assert first.prompt == "Is the athlete 0 wearing trousers? Answer the question using a single word or phrase."
    assert (first.gold, second.gold, first.task, second.task) == ("yes", "no", "yes/no", "color")
    assert first.medium.name == "v_1QIUV7WYKX0.mp4"


def test_perception_test_is_read_from_the_table_on_the_hub(tmp_path):
    row = {"video_name": "video_3", "question_id": "7", "question": "How many?", "options": ["one", "two", "three"]}
    save_parquet(tmp_path / "validation-00000-of-00001.parquet", [row | {"answer_id": "2", "area": "memory"}])
    (item,) = read_benchmark("perception-test", tmp_path)
    assert (item.id, item.gold, item.task) == ("video_3-7", "three", "memory")
    assert item.prompt == (
        "How many?\nA. one\nB. two\nC. three\nAnswer with the option's letter from the given choices directly."
    )


FIRST = {
    "video-mme": "videomme/test-00000-of-00001.parquet",
    "longvideobench": "lvb_val.json",
    "mvbench": "json/moving_count.json",
    "mlvu": "json/1_plotQA.json",
    "lvbench": "video_info.meta.jsonl",
    "longtimescope": "data/QA-00000-of-00001.parquet",
    "nextqa-mc": "val.csv",
    "nextqa-oe": "val.csv",
    "activitynet-qa": "test_a.json",
    "perception-test": "all_valid.json",
}
"""Benchmark -> one of its annotation files."""


@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("content", [b"", b"[{", b"\x89PNG\r\n", b'"text"', b"[1, 2]", b"PAR1PAR1"])
def test_a_file_of_another_kind_is_refused_by_name(name, content, tmp_path):
    MAKERS[name](tmp_path)
    (tmp_path / FIRST[name]).write_bytes(content)
    with pytest.raises(UserError) as refused:
        read_benchmark(name, tmp_path)
    assert FIRST[name] in str(refused.value)


@pytest.mark.parametrize("name", [name for name in FIRST if not FIRST[name].endswith(".parquet")])
def test_an_empty_file_is_called_empty(name, tmp_path):
    MAKERS[name](tmp_path)
    (tmp_path / FIRST[name]).write_bytes(b"")
    with pytest.raises(UserError, match="is empty"):
        read_benchmark(name, tmp_path)


MALFORMED = [
    ("video-mme", {"answer": "E"}, "row 3: answer is 'E', not a letter from A to D"),
    ("video-mme", {"answer": None}, "row 3: has no answer"),
    ("video-mme", {"options": ["A. one"]}, "row 3: options has 1 options, not 2 to 26"),
    ("video-mme", {"options": ["", " "]}, "row 3: options are not all texts"),
    ("video-mme", {"duration": "endless"}, "row 3: duration is 'endless', not one of short, medium, long"),
    ("video-mme", {"question": " "}, "row 3: question is blank"),
    ("video-mme", {"videoID": "../../secret"}, "row 3: the path ../../secret does not stay below the media folder"),
    ("video-mme", {"videoID": "/etc/passwd"}, "row 3: the path /etc/passwd does not stay below"),
    ("longvideobench", {"correct_choice": 4}, "record 3: correct_choice is 4, not a number from 0 to 3"),
    ("longvideobench", {"correct_choice": -1}, "record 3: correct_choice is -1, not a number from 0 to 3"),
    ("longvideobench", {"correct_choice": None}, "record 3: has no correct_choice"),
    ("longvideobench", {"candidates": "a b"}, "record 3: candidates is a str, not a list"),
    ("longvideobench", {"candidates": [1, 2, 3, 4]}, "record 3: candidates are not all texts"),
    ("longvideobench", {"duration": "long"}, "record 3: duration is 'long', not a number"),
    ("longvideobench", {"video_path": None}, "record 3: has no video_path"),
    ("longvideobench", {"question": "\ud83d"}, "record 3: contains an unpaired surrogate"),
    ("mvbench", {"answer": "slept"}, "record 3: answer 'slept' is not among its options"),
    ("mvbench", {"start": 3.0, "end": 2.0}, "record 3: start 3.0 and end 2.0 are not a stretch of time"),
    ("mvbench", {"start": 3.0}, "record 3: start 3.0 and end None are not a stretch of time"),
    ("mvbench", {"start": "1", "end": 2}, "record 3: start is '1', not a number of seconds"),
    ("mvbench", {"start": float("nan"), "end": 2}, "record 3: start is nan, not a number of seconds"),
    ("mvbench", {"video": "../../../x.mp4"}, "record 3: the path ../../../x.mp4 does not stay below"),
    ("mlvu", {"answer": "Purple"}, "record 3: answer 'Purple' is not among its options"),
    ("mlvu", {"answer": "E"}, "record 3: answer is 'E', not a letter from A to D"),
    ("mlvu", {"candidates": None}, "record 3: has no candidates, and its question holds none"),
    ("mlvu", {"question_type": 7}, "record 3: question_type is a int, not a str"),
    ("lvbench", {"qa": []}, "line 3: qa is empty"),
    ("lvbench", {"qa": [{"question": "Who?", "answer": "A"}]}, "line 3, question 1: has no options, and its question"),
    ("lvbench", {"qa": ["Who?"]}, "line 3, question 1: is a str, not an object"),
    ("lvbench", {"key": None}, "line 3: has no key"),
    ("longtimescope", {"answer": "E"}, "row 3: answer is 'E', not a letter from A to D"),
    ("longtimescope", {"length": None}, "row 3: length is None, not a number of seconds"),
    ("nextqa-mc", {"answer": "5"}, "line 4: answer is 5, not a number from 0 to 4"),
    ("nextqa-mc", {"video": "1"}, "line 4: video 1 is not in the map of videos"),
    ("nextqa-oe", {"answer": ""}, "line 4: answer is empty"),
    ("activitynet-qa", {"question_id": "x"}, "record 3: question v_1QIUV7WYKX0_2 has no answer in any _a.json"),
    ("activitynet-qa", {"answer": None}, "record 3) has no answer"),
    ("perception-test", {"mc_question": [{"id": 0, "question": "q", "options": ["a"], "answer_id": 0}]}, "not 3 texts"),
    ("perception-test", {"metadata": {"video_id": "other"}}, "but metadata.video_id is other"),
]
"""Benchmark, what is wrong with the third record of a file, how it is refused."""


@pytest.mark.parametrize(("name", "wrong", "reason"), MALFORMED)
def test_a_malformed_record_is_refused_by_file_place_and_reason(name, wrong, reason, tmp_path):
    MAKERS[name](tmp_path)
    path = tmp_path / FIRST[name]
    spoil(path, wrong)
    with pytest.raises(UserError) as refused:
        read_benchmark(name, tmp_path)
    assert reason in str(refused.value)
    assert str(refused.value).startswith(str(path)) or "test_q.json" in str(refused.value)


def spoil(path: Path, wrong: dict) -> None:
    """Change the third record of a file. A key whose new value is None is removed."""

    def spoilt(record: dict) -> dict:
        return {key: value for key, value in (record | wrong).items() if value is not None}

    if path.suffix == ".parquet":
        rows = pq.read_table(path).to_pylist()
        save_parquet(path, [*rows[:2], rows[2] | wrong, *rows[3:]])
    elif path.suffix == ".csv":
        header, *lines = (line.split(",") for line in path.read_text().splitlines())
        lines[2] = [str(wrong.get(key, value)) for key, value in zip(header, lines[2], strict=True)]
        path.write_text("\n".join(",".join(line) for line in [header, *lines]))
    elif path.suffix == ".jsonl":
        lines = path.read_text().splitlines()
        lines[2] = json.dumps(spoilt(json.loads(lines[2])))
        path.write_text("\n".join(lines))
    else:
        content = json.loads(path.read_text())
        key = 2 if isinstance(content, list) else "video_2"
        content[key] = spoilt(content[key])
        save_json(path, content)


@of("video-mme")
def test_a_video_that_leads_out_of_the_folder_is_refused(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "secret.mp4"
    shutil.copy(folder / "data/fFjv93ACGo0.mp4", outside)
    (folder / "data/fFjv93ACGo0.mp4").unlink()
    (folder / "data/fFjv93ACGo0.mp4").symlink_to(outside)
    with pytest.raises(UserError, match=r"row 1: video 'fFjv93ACGo0': is a symbolic link that leads out"):
        read_benchmark("video-mme", folder)


@of("video-mme")
def test_annotations_that_lead_out_of_the_folder_are_refused(folder, tmp_path_factory):
    path = folder / FIRST["video-mme"]
    outside = tmp_path_factory.mktemp("outside") / "a.parquet"
    shutil.move(path, outside)
    path.symlink_to(outside)
    with pytest.raises(UserError, match=r"leads out of its folder"):
        read_benchmark("video-mme", folder)


def test_wrong_arguments_are_refused(tmp_path):
    MAKERS["lvbench"](tmp_path)
    with pytest.raises(UserError, match=r"--benchmark video_mme: unknown. Use one of video-mme, longvideobench"):
        read_benchmark("video_mme", tmp_path)
    with pytest.raises(UserError, match=r"--subtitles: LVBench has none. .*: video-mme, longvideobench"):
        read_benchmark("lvbench", tmp_path, subtitles=True)
    with pytest.raises(UserError, match=r"--media .*/no: this folder does not exist"):
        read_benchmark("lvbench", tmp_path, media=tmp_path / "no")
    with pytest.raises(
        UserError, match=r"no annotation file is here. Give the folder that holds video_info.meta.jsonl"
    ):
        read_benchmark("lvbench", tmp_path / "all_videos")
    with pytest.raises(UserError, match=r"no such folder. Give the folder of a data set, or owner/name"):
        read_benchmark("lvbench", tmp_path / "no")


@of("video-mme")
def test_a_folder_with_a_card_is_read_as_datasets_reads_it(folder):
    expected = read_benchmark("video-mme", folder)
    path = folder / FIRST["video-mme"]
    (folder / "deep/down").mkdir(parents=True)
    shutil.move(path, folder / "deep/down/part.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: videomme\n  data_files:\n  - split: test\n    path: deep/down/*.parquet\n---\n"
    )
    assert read_benchmark("video-mme", folder) == expected


@of("video-mme")
def test_a_name_on_the_hub_is_read_from_the_cache(folder, tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    with pytest.raises(
        UserError, match=r"neither a folder nor in the cache .*hf download some/set --repo-type dataset"
    ):
        read_benchmark("video-mme", "some/set")
    expected = read_benchmark("video-mme", folder)
    stored = cache / "datasets--some--set"
    (stored / "refs").mkdir(parents=True)
    (stored / "refs/main").write_text(COMMIT)
    shutil.copytree(folder, stored / "snapshots" / COMMIT)
    for number, path in enumerate(sorted((stored / "snapshots").rglob("*"))):
        if path.is_file():  # the cache consists of links to blobs
            (stored / "blobs").mkdir(exist_ok=True)
            shutil.move(path, stored / "blobs" / str(number))
            path.symlink_to(stored / "blobs" / str(number))
    items = read_benchmark("video-mme", "some/set", subtitles=True)
    assert [item.id for item in items] == [item.id for item in expected]
    assert all(item.medium.is_file() for item in items)
    assert items[0].subtitles
    trees = stored / "trees"  # the list of files that the hub's client keeps names one more
    trees.mkdir()
    entries = {name: {"size": 1, "blob_id": "0"} for name in ("README.md", FIRST["video-mme"])}
    (trees / f"{COMMIT}.json").write_text(json.dumps({"format_version": 1, "files": entries}))
    assert len(read_benchmark("video-mme", "some/set")) == QUESTIONS


@of("video-mme")
def test_annotations_alone_are_downloaded_if_wanted(folder, tmp_path_factory):
    code = (
        "import sys; from ma2mba.evaluation.benchmarks import read_benchmark\n"
        "items = read_benchmark('video-mme', 'some/set', media=sys.argv[1], online=True)\n"
        "print(*(item.id for item in items), sum(item.medium.is_file() for item in items))"
    )
    home = tmp_path_factory.mktemp("hub")
    with serve(folder, "some/set") as address:
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        run = [sys.executable, "-c", code, str(folder)]
        done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    ids = [item.id for item in read_benchmark("video-mme", folder)]
    assert done.stdout.split() == [*ids, str(QUESTIONS)]
    assert not list(home.rglob("*.mp4")), "videos are never downloaded"


@pytest.mark.parametrize(
    ("text", "question", "options"),
    [
        ("Who?\n(A) he\n(B) she", "Who?", ("he", "she")),
        ("Who?\nA. he\nB. she\nAnswer.", "Who?", ("he", "she")),
        ("Who?\nA) he\n\nB) she\n", "Who?", ("he", "she")),
        ("Who?\nA: he\nB: she\nC: it", "Who?", ("he", "she", "it")),
        ("Who?", "Who?", ()),
        ("A. he", "A. he", ()),
        ("Who?\n(B) she\n(A) he", "Who?\n(B) she\n(A) he", ()),
        ("A man. A dog.\nWho?", "A man. A dog.\nWho?", ()),
        ("Who? (A) he (B) she", "Who?", ("he", "she")),
    ],
)
def test_options_in_a_question_are_found(text, question, options):
    assert split_options(text) == (question, options)
