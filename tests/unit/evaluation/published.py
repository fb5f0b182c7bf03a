"""Small data sets in the layout in which each benchmark is published: 20 questions about real videos of 3 to 6 s."""

import csv
import json
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.unit.video.numbered_video import write

FOUR = ["Apples.", "Candles.", "Berries.", "The three kinds are of the same number."]
QUESTIONS = 20


def video(folder: Path, name: str, seconds: int = 3) -> None:
    """Write a video of one frame a second, or copy the one that exists with this length."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    made = folder / f".{seconds}{path.suffix}"
    if not made.exists():
        write(made, range(2 * seconds), Fraction(1, 2))
    shutil.copy(made, path)


def save_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def save_parquet(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def save_csv(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def video_mme(folder: Path) -> None:
    rows = [
        {
            "video_id": f"{i // 3 + 1:03}",
            "duration": ("short", "medium", "long")[i % 3],
            "domain": "Knowledge",
            "sub_category": "Humanity & History",
            "url": f"https://www.youtube.com/watch?v=fFjv93ACGo{i // 3}",
            "videoID": f"fFjv93ACGo{i // 3}",
            "question_id": f"{i // 3 + 1:03}-{i % 3 + 1}",
            "task_type": ("Counting Problem", "OCR Problems")[i % 2],
            "question": f"Which of the {i} items appears more than the others?",
            "options": [f"{letter}. {text}" for letter, text in zip("ABCD", FOUR, strict=True)],
            "answer": "ABCD"[i % 4],
        }
        for i in range(QUESTIONS)
    ]
    save_parquet(folder / "videomme" / "test-00000-of-00001.parquet", rows)
    for i in range(7):
        video(folder, f"data/fFjv93ACGo{i}.{'MP4' if i == 1 else 'mkv' if i == 2 else 'mp4'}")
    (folder / "subtitle").mkdir()
    (folder / "subtitle" / "fFjv93ACGo0.srt").write_text(
        "\ufeff1\n00:00:00,000 --> 00:00:01,500\n"
        '<font color="white" size=".72c">In 1999 we</font>\n\n2\n00:00:01,500 --> 00:00:03,000\n'
        '<font color="white" size=".72c">counted apples</font>\n42\n'
    )


def longvideobench(folder: Path) -> None:
    records = [
        {
            "video_id": f"86CxyhFV9M{i // 2}",
            "question": f"On the screen {i}, what is there?",
            "question_wo_referring_query": "what is there?",
            "candidates": [f"a thing {k}" for k in range(4 + i % 2)],
            "correct_choice": i % 4,
            "position": [854, 1200],
            "topic_category": "NP-News-Programs",
            "question_category": ("TOS", "S2E")[i % 2],
            "level": "L2-Relation",
            "id": f"86CxyhFV9M{i // 2}_{i % 2}",
            "video_path": f"86CxyhFV9M{i // 2}.mp4",
            "subtitle_path": f"86CxyhFV9M{i // 2}_en.json",
            "duration_group": (15, 60, 600, 3600)[i % 4],
            "starting_timestamp_for_subtitles": 10 if i // 2 == 0 else 0,
            "duration": 3.0,
            "view_count": 5,
        }
        for i in range(QUESTIONS)
    ]
    save_json(folder / "lvb_val.json", records)
    save_json(folder / "lvb_test_wo_gt.json", [{k: v for k, v in records[0].items() if k != "correct_choice"}])
    for i in range(10):
        video(folder, f"videos/86CxyhFV9M{i}.mp4")
    film = [("00:00:01.000", "00:00:04.000", "before"), ("00:00:10.500", "00:00:11.5", "in the  film")]
    lines = [{"start": a, "end": b, "line": text} for a, b, text in film]
    save_json(folder / "subtitles/86CxyhFV9M0_en.json", [*lines, lines[0] | {"start": "0:01:00", "end": "0:02:00"}])
    spoken = [{"timestamp": [0.5, 1.0], "text": "hello"}, {"timestamp": [2.0, None], "text": "there"}]
    save_json(folder / "subtitles/86CxyhFV9M1_en.json", spoken)


def mvbench(folder: Path) -> None:
    def asked(i: int, name: str, **more: Any) -> dict:
        options = ["opened the door", "closed the door", "took the towel"]
        return {
            "video": name,
            "question": f"What happened {i}?",
            "candidates": options,
            "answer": options[i % 3],
        } | more

    parts = {
        "action_sequence": [asked(i, f"V{i // 2}.mp4", start=1.0, end=3.5) for i in range(8)],
        "moving_count": [asked(i, f"video_10000-11000/video_1000{i}.mp4") for i in range(4)],
        "fine_grained_pose": [asked(i, f"S001C00{i}.avi") for i in range(4)],
        "episodic_reasoning": [asked(i, "friends_s06e07_seg02_clip_16", start=0, end=2.0 + i) for i in range(4)],
    }
    for task, records in parts.items():
        save_json(folder / "json" / f"{task}.json", records)
    for i in range(4):
        video(folder, f"video/star/Charades_v1_480/V{i}.mp4", 5)
        video(folder, f"video/clevrer/video_validation/video_10000-11000/video_1000{i}.mp4")
        video(folder, f"video/nturgbd/S001C00{i}.avi")
    pictures = folder / "video/tvqa/frames_fps3_hq/friends_s06e07_seg02_clip_16"
    pictures.mkdir(parents=True)
    for k in range(15):
        Image.fromarray(np.full((48, 64, 3), 16 * k, np.uint8)).save(pictures / f"{k + 1:05}.jpg")


def mlvu(folder: Path) -> None:
    for number, (task, kind) in enumerate((("plotQA", "plotQA"), ("needle", "findNeedle"), ("count", "count"))):
        name = f"{(1, 2, 4)[number]}_{task}"
        many = (8, 8, 4)[number]
        records = [
            {
                "video": f"{task}_{i // 2}.mp4",
                "duration": 246,
                "question": f"What color is the main character {i}?",
                "candidates": ["Yellow", "Red", "Green", "Blue"],
                "answer": ("Yellow", "Red", "Green", "Blue")[i % 4],
                "question_type": kind,
            }
            for i in range(many)
        ]
        if task == "needle":
            flawed = records[0] | {"video": "needle_4.mp4", "answer": "Catching a flying drone quadcopter"}
            records.insert(3, flawed)
        save_json(folder / "json" / f"{name}.json", records)
        for i in range(many // 2):
            video(folder, f"video/{name}/{task}_{i}.mp4")
    save_json(folder / "json" / "9_summary.json", [{"video": "217.mp4", "question": "Summarise.", "answer": "He."}])


def lvbench(folder: Path) -> None:
    lines = [
        {
            "key": f"Cm73ma6Ibc{i}",
            "type": "sport",
            "video_info": {"duration_minutes": 84, "fps": 25.0, "resolution": "1280x720"},
            "qa": [
                {
                    "uid": str(4 * i + k),
                    "question": f"What year appears in caption {k}?\n(A) 1636\n(B) 1366\n(C) 1363\n(D) 1633",
                    "answer": "ABCD"[k],
                    "question_type": [("key information retrieval", "entity recognition")[i % 2], "reasoning"],
                    "time_reference": "00:15-00:19",
                }
                for k in range(4)
            ],
        }
        for i in range(5)
    ]
    (folder / "video_info.meta.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    for i in range(5):
        video(folder, f"all_videos/Cm73ma6Ibc{i}.mp4")


def longtimescope(folder: Path) -> None:
    for kind in ("QA", "OCR"):
        rows = [
            {
                "index": i,
                "video": f"videos/{kind}_{i // 5}.mp4",
                "input": f"What is the secret word {i}?\nA. apple\nB. pear\nC. plum\nD. fig\n"
                "Answer with the option's letter from the given choices directly.",
                "length": (60, 28800)[i // 5],
                "replace_time": 0.5,
                "type": kind,
                "answer": "ABCD"[i % 4],
            }
            for i in range(10)
        ]
        save_parquet(folder / f"data/{kind}-00000-of-00001.parquet", rows)
        for i in range(2):
            video(folder, f"videos/{kind}_{i}.mp4")


def _next_rows() -> list[dict]:
    return [
        {
            "video": str(4010069381 + i // 4),
            "frame_count": 369,
            "width": 640,
            "height": 480,
            "question": f"how do the two men play the instrument {i}",
            "qid": str(i % 4),
            "type": ("CH", "CW", "TN")[i % 3],
        }
        for i in range(QUESTIONS)
    ]


def _next_videos(folder: Path) -> None:
    save_json(folder / "map_vid_vidorID.json", {str(4010069381 + i): f"1106/{4010069381 + i}" for i in range(5)})
    for i in range(5):
        video(folder, f"NExTVideo/1106/{4010069381 + i}.mp4")


def nextqa_mc(folder: Path) -> None:
    options = ("roll the handle", "tap their feet", "strum the string", "hit with sticks", "pat with hand")
    choices = {f"a{i}": option for i, option in enumerate(options)}
    save_csv(folder / "val.csv", [row | {"answer": i % 5} | choices for i, row in enumerate(_next_rows())])
    _next_videos(folder)


def nextqa_oe(folder: Path) -> None:
    save_csv(folder / "val.csv", [row | {"answer": "from the drivers cabin"} for row in _next_rows()])
    _next_videos(folder)


def activitynet_qa(folder: Path) -> None:
    names = [f"1QIUV7WYKX{i // 4}" for i in range(QUESTIONS)]
    asked = [
        {"video_name": name, "question": f"is the athlete {i} wearing trousers", "question_id": f"v_{name}_{i % 4}"}
        for i, name in enumerate(names)
    ]
    given = [
        {"answer": ("yes", "no")[i % 2], "type": 3 + i % 2, "question_id": q["question_id"]}
        for i, q in enumerate(asked)
    ]
    save_json(folder / "test_q.json", asked)
    save_json(folder / "test_a.json", given)
    for i in range(5):
        video(folder, f"videos/v_1QIUV7WYKX{i}.{'mkv' if i else 'mp4'}")


def perception_test(folder: Path) -> None:
    content: dict[str, Any] = {}
    for i in range(5):
        asked = [
            {
                "id": k,
                "question": f"How many objects {k} were put in the bag?",
                "options": ["one", "two", "three"],
                "answer_id": k % 3,
                "area": ("physics", "memory")[k % 2],
                "reasoning": "descriptive",
                "tag": ["counting"],
            }
            for k in range(4)
        ]
        content[f"video_{i}"] = {"metadata": {"split": "valid", "video_id": f"video_{i}"}, "mc_question": asked}
        video(folder, f"videos/video_{i}.mp4")
    content["video_9"] = {"metadata": {"split": "valid", "video_id": "video_9"}, "mc_question": []}
    save_json(folder / "all_valid.json", content)


MAKERS: dict[str, Callable[[Path], None]] = {
    "video-mme": video_mme,
    "longvideobench": longvideobench,
    "mvbench": mvbench,
    "mlvu": mlvu,
    "lvbench": lvbench,
    "longtimescope": longtimescope,
    "nextqa-mc": nextqa_mc,
    "nextqa-oe": nextqa_oe,
    "activitynet-qa": activitynet_qa,
    "perception-test": perception_test,
}
"""Benchmark -> the function that writes 20 questions in its published layout to a folder, with their videos."""
