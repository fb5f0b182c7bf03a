"""Folders in the layout of the Hugging Face hub: LLaVA-Video-178K and SceneWalk, a few records of each."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from tests.unit.video.numbered_video import write

QUESTIONS = {"caption": "Describe the video.", "open_ended": "Which symbol appeared?", "multi_choice": "four or five?"}
"""Split of LLaVA-Video-178K -> a question."""
SHORT = {"caption": "cap", "open_ended": "oe", "multi_choice": "mc"}
CONFIG = "0_30_s_nextqa"


def turns(question: str, answer: str, **more: Any) -> list[dict]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer} | more]


def write_videos(folder: Path, names: list[str]) -> None:
    """Write small videos of 5 to 8 s."""
    folder.mkdir(parents=True)
    for i, name in enumerate(names):
        write(folder / name, range(40 + 8 * i), Fraction(1, 8))


def llava_records(split: str) -> list[dict]:
    """Records of a split. Only some have certain keys. There are dates, accents and a record without an answer."""
    ask = f"<image>\n{QUESTIONS[split]}"
    return [
        {"id": f"{split}-0", "data_source": CONFIG, "video": "0.mp4", "conversations": turns(ask, "2020-01-01")},
        {"id": f"{split}-1", "video": "1.mp4", "conversations": turns(ask, "a red star appears.", score=1), "n": 3},
        {"id": f"{split}-2", "video": "2.mp4", "conversations": turns(ask, "un été"), "n": 2.5},
        {"id": f"{split}-3", "video": "0.mp4", "conversations": turns(ask, "red star") + turns("how many", "four")},
        {"id": f"{split}-bad", "video": "1.mp4", "conversations": turns(ask, "x")[:1]},
    ]


def scene_records() -> list[dict]:
    """SceneWalk by video."""
    spans = [(0, 16), (16, 24), (24, 40)]
    talk = [turn for word in ("one.", "two.", "été 3.") for turn in turns("Describe this scene.", word)]
    scenes = [{"start_frame": a, "end_frame": b, "start_fps": 8, "end_fps": 8} for a, b in spans]
    walk = {"id": "0", "video": "0.mp4", "total_time": 5, "clip_num": 3, "scenes": scenes, "conversations": talk}
    other = walk | {"id": "1", "video": "1.mp4", "total_time": 5.5, "scenes": [s | {"note": "x"} for s in scenes]}
    return [walk, other, walk | {"id": "2", "clip_num": 4}]


def segment_records() -> list[dict]:
    """SceneWalk by segment: the rows of two videos, mixed, and a row without frames."""
    rows = [("0", 24, 40, "two"), ("1", 0, 20, "alone"), ("0", 0, 24, "one"), ("2", 9, 9, "none")]
    return [
        {
            "id": i,
            "url": f"https://example.com/{i}",
            "time_stamp": {"duration": 5.0, "start_frame": a, "end_frame": b, "start_time": "0", "end_time": "5"},
            "v2t_score": [0.5],
            "conversations": turns("Describe this scene.", text),
        }
        for i, a, b, text in rows
    ]


def readme(folder: Path, configs: dict[str, dict[str, str]]) -> None:
    """Write the card of a data set: configuration -> split -> path."""
    listed = [
        {"config_name": name, "data_files": [{"split": s, "path": path} for s, path in splits.items()]}
        for name, splits in configs.items()
    ]
    (folder / "README.md").write_text(f"---\nlicense: apache-2.0\nconfigs: {json.dumps(listed)}\n---\n# A data set\n")


def save(records: list[dict], path: Path) -> None:
    """Write records in the format that the suffix names; Parquet and Arrow in two batches."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(records, indent=1))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records, schema=schema(records)), path, row_group_size=2)
    else:
        table = pa.Table.from_pylist(records, schema=schema(records))
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=2)


def schema(records: list[dict]) -> pa.Schema:
    """The schema that covers all records: a key that one record lacks is null there."""
    return pa.unify_schemas([pa.Table.from_pylist([r]).schema for r in records], promote_options="permissive")


def llava_folder(folder: Path, suffix: str) -> Path:
    """LLaVA-Video-178K: two configurations, of which the first has three splits, and an archive of videos."""
    for split, short in SHORT.items():
        save(llava_records(split), folder / CONFIG / f"{CONFIG}_{short}_processed{suffix}")
    save(llava_records("caption")[:1], folder / "1_2_m_nextqa" / f"1_2_m_nextqa_cap_processed{suffix}")
    (folder / CONFIG / f"{CONFIG}_videos_1.tar.gz").write_bytes(b"videos")
    files = {split: f"{CONFIG}/*_{short}_processed{suffix}" for split, short in SHORT.items()}
    readme(folder, {CONFIG: files, "1_2_m_nextqa": {"caption": f"1_2_m_nextqa/*_cap_processed{suffix}"}})
    return folder


def scenewalk_folder(folder: Path, records: list[dict], suffix: str) -> Path:
    """SceneWalk: two shards of a split."""
    save(records[:1], folder / f"data/train-00000-of-00002{suffix}")
    save(records[1:], folder / f"data/train-00001-of-00002{suffix}")
    readme(folder, {"default": {"train": "data/train-*"}})
    return folder
