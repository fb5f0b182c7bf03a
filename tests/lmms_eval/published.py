"""Small files in the published format of tasks that lmms-eval ships, and the prompts that these tasks make of them."""

import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmms_eval
import pyarrow as pa
import pyarrow.parquet as pq

from ma2mba.video.synthetic.movie import plan_movie, write_movie

QUESTIONS = 20
SUBJECTS = ("ring", "star", "cross", "square", "triangle", "wave")
Record = dict[str, Any]


@dataclass(frozen=True)
class ShippedTask:
    """A task of lmms-eval.

    shipped    its YAML, below `lmms_eval/tasks`
    benchmark  its name in `ma2mba eval --benchmark`
    data       the file of its records, as `ma2mba eval` looks for it
    media      its folder below HF_HOME: the folder of the media for `ma2mba eval`
    videos     where the task looks for videos, below `media`
    split      the split that the task reads
    metric     the metric that holds its score, and what the score of a perfect model is
    records    the records as published
    file       the video of a record
    prompt     the text that the task makes of a record
    gold       the letter of a record's right option
    """

    shipped: str
    benchmark: str
    data: str
    media: str
    videos: str
    split: str
    metric: str
    best: float
    records: list[Record]
    file: Callable[[Record], str]
    prompt: Callable[[Record], str]
    gold: Callable[[Record], str]

    @property
    def names(self) -> list[str]:
        return sorted({self.file(record) for record in self.records})

    def write(self, folder: Path) -> Path:
        """Write the records below `folder`, and return their file."""
        path = folder / self.data
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(self.records), path)
        elif path.suffix == ".jsonl":
            path.write_text("".join(json.dumps(record) + "\n" for record in self.records))
        else:
            path.write_text(json.dumps(self.records))
        return path

    def yaml(self, name: str, data: Path) -> str:
        """Return a task that includes the shipped one and reads `data`."""
        shipped = Path(lmms_eval.__file__).parent / "tasks" / self.shipped
        reader = "parquet" if data.suffix == ".parquet" else "json"
        return (
            f"include: {shipped}\ntask: local_{name}\ndataset_path: {reader}\ndataset_name: null\n"
            f"dataset_kwargs:\n  data_files:\n    {self.split}: {data}\n"
        )


def write_videos(folder: Path, names: Iterable[str]) -> None:
    """Write a video of 4 to 9 seconds under each name."""
    for name in names:
        path = folder / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            rng = random.Random(name)
            write_movie(plan_movie(path.stem, rng.randint(4, 9), "red star", rng.randint(1, 2), rng), path)


def asked(number: int) -> tuple[str, list[str], int]:
    """Return question, four options, and the place of the right one."""
    rng = random.Random(number)
    return f"Which shape appears in part {number}?", rng.sample(SUBJECTS, 4), rng.randrange(4)


def lettered(options: list[str], form: str) -> list[str]:
    return [form.format("ABCDE"[n], option) for n, option in enumerate(options)]


def video_mme() -> ShippedTask:
    records = []
    for n in range(QUESTIONS):
        question, options, right = asked(n)
        records.append(
            {
                "video_id": f"{n // 3:03}",
                "duration": ("short", "medium", "long")[n // 3 % 3],
                "domain": "Knowledge",
                "sub_category": "Astronomy",
                "url": "",
                "videoID": f"v{n // 3}",
                "question_id": f"{n // 3:03}-{n % 3}",
                "task_type": "Object Recognition",
                "question": question,
                "options": lettered(options, "{}. {}"),
                "answer": "ABCD"[right],
            }
        )

    def prompt(record: Record) -> str:
        lead = (
            "Select the best answer to the following multiple-choice question based on the video and the subtitles. "
            "Respond with only the letter (A, B, C, or D) of the correct option."
        )
        ask = "\nAnswer with the option's letter from the given choices directly."
        return "\n".join([lead, record["question"], *record["options"], ask])

    return ShippedTask(
        "videomme/videomme.yaml",
        "video-mme",
        "test.jsonl",
        "videomme",
        "data",
        "test",
        "videomme_perception_score",
        100.0,
        records,
        lambda record: f"{record['videoID']}.mp4",
        prompt,
        lambda record: record["answer"],
    )


def long_video_bench() -> ShippedTask:
    records = []
    for n in range(QUESTIONS):
        question, options, right = asked(n)
        records.append(
            {
                "video_id": f"v{n // 2}",
                "video_path": f"v{n // 2}.mp4",
                "question": question,
                "question_wo_referring_query": question,
                **{f"option{k}": option for k, option in enumerate([*options, "N/A"])},
                "correct_choice": right,
                "topic_category": "NP-News-Programs",
                "question_category": ("S2E", "T3O")[n % 2],
                "level": "L1-Perception",
                "id": f"v{n // 2}_{n % 2}",
                "subtitle_path": f"v{n // 2}.json",
                "duration_group": (15, 600)[n % 2],
                "starting_timestamp_for_subtitles": 0.0,
                "duration": 5.0,
                "view_count": 1,
            }
        )

    def prompt(record: Record) -> str:
        options = lettered([record[f"option{k}"] for k in range(4)], "{}. {}")
        ask = "Answer with the option's letter from the given choices directly.\n"
        return "\n".join([record["question"], *options, ask])

    return ShippedTask(
        "longvideobench/longvideobench_val_v.yaml",
        "longvideobench",
        "lvb.jsonl",
        "datasets/longvideobench",
        "videos",
        "validation",
        "lvb_acc",
        1.0,
        records,
        lambda record: record["video_path"],
        prompt,
        lambda record: "ABCD"[record["correct_choice"]],
    )


def mv_bench() -> ShippedTask:
    records = []
    for n in range(QUESTIONS):
        question, options, right = asked(n)
        records.append(
            {
                "video": f"v{n // 2}.mp4",
                "question": question,
                "candidates": options,
                "answer": options[right],
                "start": 1.0,
                "end": 3.0,
            }
        )

    def prompt(record: Record) -> str:
        options = "".join(f"{line}\n" for line in lettered(record["candidates"], "({}) {}"))
        return f"Question:{record['question']}\nOption:\n{options}Only give the best option.\n"

    return ShippedTask(
        "mvbench/mvbench_action_sequence.yaml",
        "mvbench",
        "json/action_sequence.json",
        "mvbench_video",
        "star/Charades_segment",
        "train",
        "mvbench_accuracy",
        100.0,
        records,
        lambda record: record["video"],
        prompt,
        lambda record: "ABCD"[record["candidates"].index(record["answer"])],
    )


def nextqa() -> ShippedTask:
    records = []
    for n in range(QUESTIONS):
        question, options, right = asked(n)
        records.append(
            {
                "video": f"{1000 + n // 4}",
                "frame_count": 40,
                "width": 64,
                "height": 64,
                "question": question,
                "answer": right,
                "qid": n,
                "type": "CW",
                **{f"a{k}": option for k, option in enumerate([*options, "nothing"])},
            }
        )

    def prompt(record: Record) -> str:
        return "\n".join([record["question"], *lettered([record[f"a{k}"] for k in range(5)], "{}. {}")])

    return ShippedTask(
        "nextqa/nextqa_mc_test.yaml",
        "nextqa-mc",
        "MC/test-00000-of-00001.parquet",
        "nextqa",
        "NExTVideo",
        "test",
        "exact_match",
        1.0,
        records,
        lambda record: f"{record['video']}.mp4",
        prompt,
        lambda record: "ABCDE"[record["answer"]],
    )


def perception_test() -> ShippedTask:
    records = []
    for n in range(QUESTIONS):
        question, options, right = asked(n)
        records.append(
            {
                "video_name": f"video_{n // 2}",
                "question": question,
                "options": options[:3],
                "answer_id": right % 3,
                "area": "memory",
                "reasoning": "descriptive",
                "tag": ["object"],
                "question_id": n % 2,
            }
        )

    def prompt(record: Record) -> str:
        ask = "Answer with the option's letter from the given choices directly."
        return "\n".join([record["question"], *lettered(record["options"], "{}. {}"), ask])

    return ShippedTask(
        "perceptiontest/val/perceptiontest_mc.yaml",
        "perception-test",
        "validation-00000-of-00001.parquet",
        "perceptiontest_val",
        "videos",
        "validation",
        "accuracy",
        1.0,
        records,
        lambda record: f"{record['video_name']}.mp4",
        prompt,
        lambda record: "ABC"[record["answer_id"]],
    )


MLVU_TYPES = ("anomaly_reco", "count", "ego", "needle", "order", "plotQA", "topic_reasoning")


def mlvu() -> ShippedTask:
    records = []
    for n in range(3 * len(MLVU_TYPES)):
        question, options, right = asked(n)
        records.append(
            {
                "video_name": f"v{n // 3}.mp4",
                "duration": 5.0,
                "question": "\n".join([question, *lettered(options, "({}) {}")]),
                "candidates": options,
                "answer": "ABCD"[right],
                "task_type": MLVU_TYPES[n % len(MLVU_TYPES)],
            }
        )
    return ShippedTask(
        "mlvu/mlvu_dev.yaml",
        "mlvu",
        "dev.jsonl",
        "mlvu",
        "",
        "test",
        "mlvu_percetion_score",
        100.0,
        records,
        lambda record: record["video_name"],
        lambda record: record["question"] + "\nOnly give the best option.\nBest option: (",
        lambda record: record["answer"],
    )


def lvbench() -> ShippedTask:
    records = []
    for n in range(QUESTIONS):
        question, options, right = asked(n)
        records.append(
            {
                "video_path": f"v{n // 4}.mp4",
                "question": question,
                "options": options,
                "answer": "ABCD"[right],
                "question_type": ["entity recognition"],
                "uid": str(n),
            }
        )

    def prompt(record: Record) -> str:
        options = lettered(record["options"], "({}) {}")
        return "\n".join([record["question"], *options, "Answer the question with the option letter"])

    return ShippedTask(
        "lvbench/lvbench.yaml",
        "lvbench",
        "video_info.meta.jsonl",
        "lvbench",
        "",
        "train",
        "lvbench_score",
        1.0,
        records,
        lambda record: record["video_path"],
        prompt,
        lambda record: record["answer"],
    )


def long_time_scope() -> ShippedTask:
    records = []
    for n in range(QUESTIONS):
        question, options, right = asked(n)
        records.append(
            {
                "id": str(n),
                "video": f"v{n // 2}.mp4",
                "type": ("QA", "OCR", "temporal")[n % 3],
                "length": (60, 28800)[n % 2],
                "input": "\n".join([question, *lettered(options, "{}. {}")]),
                "answer": "ABCD"[right],
            }
        )
    return ShippedTask(
        "longtimescope/longtimescope.yaml",
        "longtimescope",
        "test.jsonl",
        "longtimescope",
        "",
        "test",
        "timescope_perception_score",
        100.0,
        records,
        lambda record: record["video"],
        lambda record: record["input"],
        lambda record: record["answer"],
    )


TASKS = {
    "videomme": video_mme(),
    "longvideobench": long_video_bench(),
    "mvbench": mv_bench(),
    "nextqa": nextqa(),
    "perceptiontest": perception_test(),
    "mlvu": mlvu(),
    "lvbench": lvbench(),
    "longtimescope": long_time_scope(),
}
