"""Annotations that mean something else than they seem to: each is read as it is meant, or rejected with its reason."""

import json
from fractions import Fraction

import pytest
import yaml

from data_prep.build import build
from data_prep.reading import read_sources
from data_prep.recipe import load_recipe
from data_prep.scene_times import Footage, contradiction
from data_prep.toy.words import save_tokenizer
from ma2mba.annotations.scenewalk import Scene
from ma2mba.shards.reader import ShardReader
from tests.unit.video.numbered_video import write

TALK = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "four"}]
UNMARKED = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "four"}]
GOOD = {"id": "good", "video": "a.mp4", "conversations": TALK}


def recipe(folder, content, form="llava", name="a.json", **changes):
    (folder / "media").mkdir(exist_ok=True)
    save_tokenizer(folder / "tokenizer.json")
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    source = {"format": form, "annotations": name, "media": "media"}
    whole = {"stage": "s", "tokenizer": "tokenizer.json", "image_size": 32, "sources": [source]} | changes
    (folder / "recipe.yaml").write_text(yaml.safe_dump(whole))
    return folder / "recipe.yaml"


def read(path):
    """Return the ids of the clips, and the reasons of the rejects by their place."""
    reading = read_sources(load_recipe(path), path.parent)
    rejects = {reject.where: reject.reason.removeprefix("malformed record: ") for reject in reading.rejects}
    return [clip.sample_id for clip in reading.clips], rejects


def mark(text):
    return [{"from": "human", "value": text}, {"from": "gpt", "value": "four"}]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"start": 1.0, "end": 2.0}, "has the key start, which this format does not read: a record is one whole file"),
        ({"end_frame": 9}, "has the key end_frame, which this format does not read: a record is one whole file"),
        ({"videos": ["a.mp4"]}, "has the key videos, which this format does not read: a record is one whole file"),
        (
            {"conversations": mark("<image>\n<video>\nq")},
            "turn 1 has the mark <video>; <image> marks a video too, once",
        ),
        ({"conversations": mark("<video>\nq")}, "turn 1 has the mark <video>; <image> marks a video too, once"),
        (
            {"video": None, "conversations": mark("<video>\nq")},
            "names no video, but turn 1 begins with <video>",
        ),
        ({"image": "a.png"}, "names both an image and a video"),
        ({"image": None, "start": None, "videos": None}, None),
        ({"image": None, "video": None, "conversations": UNMARKED}, None),
        ({"video": None, "conversations": mark("What does the <video> tag of HTML do?")}, None),
    ],
)
def test_keys_and_marks_of_other_formats(changes, reason, tmp_path):
    clips, rejects = read(recipe(tmp_path, [GOOD, GOOD | {"id": "odd"} | changes]))
    assert clips == (["good"] if reason else ["good", "odd"])
    assert list(rejects.values()) == ([reason] if reason else [])


def test_a_stray_quote_costs_its_own_row(tmp_path):
    rows = [
        "videoid,contentUrl,duration,page_dir,name",
        "1,u,PT1S,d,plain",
        '2,u,PT1S,d,"not closed',
        "3,u,PT1S,d,three",
        '4,u,PT1S,d,say "four" now',
        '5,u,PT1S,d,"two',
        'lines, and ""more"""',
        '6,u,PT1S,d,"closed" by accident',
        '7,u,PT1S,d,"opened',
        "8,u,PT1S,d,eight",
        '9,u,PT1S,d,ends with "',
        "",
        '10,u,PT1S,d,"red, green, blue, white,',
        "and black, or, if you like, yellow",
        'and grey"',
        '11,u,PT1S,d,"to the end',
        "12,u,PT1S,d,twelve",
    ]
    clips, rejects = read(recipe(tmp_path, "\n".join(rows), "webvid", "w.csv"))
    assert clips == ["1", "3", "4", "5", "8", "9", "10", "12"]
    assert rejects == {
        "w.csv line 3": "not CSV (',' expected after '\"')",
        "w.csv line 8": "not CSV (',' expected after '\"')",
        "w.csv line 9": "has a stray quote: rows follow it in its text",
        "w.csv line 16": "not CSV (unexpected end of data)",
    }


def walk(name, spans, **changes):
    talk = [
        turn for i in range(len(spans)) for turn in ({"from": "human", "value": "q"}, {"from": "gpt", "value": f"{i}."})
    ]
    return {
        "id": name,
        "video": f"{name}.mp4",
        "clip_num": len(spans),
        "scenes": spans,
        "conversations": talk,
    } | changes


def test_scenes_of_a_video_with_another_frame_rate(tmp_path):
    (tmp_path / "media").mkdir()
    write(tmp_path / "media/right.mp4", range(60), Fraction(1, 10))
    write(tmp_path / "media/twice.mp4", range(120), Fraction(1, 20))
    write(tmp_path / "media/longer.mp4", range(90), Fraction(1, 10))
    spans = [{"start_frame": a, "end_frame": a + 20} for a in (0, 20, 40)]
    records = [walk(name, spans, total_time=6.0) for name in ("right", "twice", "longer")]
    path = recipe(tmp_path, "\n".join(map(json.dumps, records)), "scenewalk", "s.jsonl")
    _, rejects = build(path, tmp_path / "shards", workers=1)
    (row,) = ShardReader(tmp_path / "shards").rows
    assert row.sample_id == "right"
    assert counts(row.frame_positions) == [2, 2, 2]
    assert {reject.sample_id: reject.reason for reject in rejects} == {
        "twice": "has 120 frames in 6.00 s, but its record has 60 frames (last end_frame) in 6 s (total_time)",
        "longer": "lasts 8.94 s, but its record says 6 s (total_time)",
    }


def counts(positions):
    return [list(positions).count(value) for value in sorted(set(positions))]


def scenes(*spans, fps=(None, None, None)):
    return [Scene(a, b, "", pair) for (a, b), pair in zip(spans, fps, strict=False)]


THIRDS = ((0, 40), (40, 80), (80, 120))


@pytest.mark.parametrize(
    ("parts", "total", "frames", "duration", "said"),
    [
        (scenes(*THIRDS), 12.0, 120, 12.0, ""),
        (scenes(*THIRDS), 12, 121, 12.3, ""),
        (scenes(*THIRDS), None, 240, 12.0, ""),
        (scenes(*THIRDS), None, 100, 10.0, "its last scene ends at frame 120, but it has 100 frames"),
        (scenes(*THIRDS), 12.0, 80, 12.0, "its last scene starts at frame 80, but it has 80 frames"),
        (scenes(*THIRDS), 12.0, 300, 12.0, "has 300 frames in 12.00 s, but its record has 120 frames"),
        (scenes(*THIRDS), 12.0, 120, 24.0, "lasts 24.00 s, but its record says 12 s"),
        (scenes(*THIRDS, fps=((0, 4), (4, 8), (8, 12))), None, 240, 12.0, "the times of its scenes say 10"),
        (scenes(*THIRDS[:2], fps=((0, 4), (4, 8))), 12.0, 120, 12.0, ""),
        (scenes(*THIRDS[:2], fps=((10, 10), (10, 10))), 12.0, 120, 12.0, ""),
        (scenes(*THIRDS[:2], fps=((20, 20), (20, 20))), 12.0, 120, 12.0, "has 120 frames in 12.00 s, but its record"),
    ],
)
def test_a_video_against_the_record_of_its_scenes(parts, total, frames, duration, said):
    found = contradiction(parts, total, Footage(frames, duration))
    assert said in found
    assert bool(said) == bool(found)


@pytest.mark.parametrize("total", [-1, 0, 1e308, float("nan"), "soon", True, [3]])
def test_impossible_durations(total, tmp_path):
    spans = [{"start_frame": 0, "end_frame": 20}]
    records = [walk("a", spans), walk("b", spans, total_time=total), walk("c", spans, total_time="2.5")]
    clips, rejects = read(recipe(tmp_path, "\n".join(map(json.dumps, records)), "scenewalk", "s.jsonl"))
    assert clips == ["a", "c"]
    assert "not a number of seconds above 0" in rejects["s.jsonl line 2"]
