"""Make one small, healthy example of every file that a command reads: what the fuzz mutates."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from PIL import Image

from ma2mba.cli.app import main
from ma2mba.magc import Plan
from ma2mba.model.config import ModelConfig
from ma2mba.model.pretrained import save_model
from ma2mba.model.video_ma2mba import VideoMa2mba
from ma2mba.training.faults.replay import MicroBatchRecord, StepRecord, write
from ma2mba.training.recipe.loading import load_recipe
from tests.tiny import TINY_MODEL
from tests.unit.data.toy_shards import tokenizer
from tests.unit.video import numbered_video

TALK = [{"from": "human", "value": "<image>\nw1 w2"}, {"from": "gpt", "value": "w3 w4"}]
UNMARKED = [{"from": "human", "value": "w1"}, {"from": "gpt", "value": "w3 w4"}]
SPANS = [{"start_frame": 0, "end_frame": 10}, {"start_frame": 10, "end_frame": 20}]
FORMATS = {
    "llava": {
        "llava.json": [
            {"id": 1, "image": "p.png", "conversations": TALK},
            {"id": "2", "image": "p.jpg", "conversations": TALK},
            {"id": "3", "video": "v.mp4", "conversations": TALK},
            {"id": "4", "conversations": UNMARKED},
            {"id": "5", "video": "gone.mp4", "conversations": TALK},
        ]
    },
    "llava_video": {"video.json": [{"id": "1", "video": "v.mp4", "data_source": "s", "conversations": TALK}] * 2},
    "webvid": {
        "webvid.csv": "videoid,contentUrl,duration,page_dir,name\n1,u,PT00H00M02S,page,w1 w2\n2,u,PT00H00M02S,page,w3\n"
    },
    "scenewalk": {
        "walk.jsonl": {"id": "a", "video": "v.mp4", "clip_num": 2, "scenes": SPANS, "conversations": UNMARKED * 2}
    },
    "scenewalk_segments": {
        "walk.parquet": [
            {"id": "v", "time_stamp": span, "conversations": UNMARKED, "clip_score": 0.5} for span in SPANS
        ]
    },
    "nextqa_mc": {
        "mc.csv": "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n"
        "7,60,64,32,w1,0,1,CH,w2,w3,w4,w5,w6\n7,60,64,32,w2,4,2,CW,w2,w3,w4,w5,w6\n",
        "map_vid_vidorID.json": {"7": "page/7", "8": "8"},
    },
    "nextqa_oe": {
        "oe.csv": "video,frame_count,width,height,question,answer,qid,type,additional_ref_answer\n"
        "7,60,64,32,w1,w2,1,CH,\n7,60,64,32,w3,w4,2,DL,w5\n"
    },
    "activitynet_qa": {
        "val_q.json": [{"video_name": "v", "question": "w1", "question_id": "v_1"}],
        "val_a.json": [{"answer": "w2", "type": 3, "question_id": "v_1"}],
    },
    "perception_test": {
        "perception.json": {
            "v": {
                "metadata": {"video_id": "v", "split": "valid"},
                "mc_question": [{"id": 3, "question": "w1", "options": ["w1", "w2", "w3"], "answer_id": 1}] * 2,
            }
        }
    },
}
"""Annotation format -> name of a file -> its content."""


def make(folder: Path) -> None:
    """Write all examples to `folder`."""
    tokenizer().save(str(folder / "tokenizer.json"))
    _media(folder / "media")
    _annotations(folder)
    command("data", "build", folder / "recipes/llava.yaml", "--out", folder / "shards", "--workers", "1")
    torch.manual_seed(0)
    model = VideoMa2mba(ModelConfig.model_validate(TINY_MODEL))
    save_model(model, folder / "tokenizer.json", folder / "model")
    command("ingest", folder / "media/p.png", "--model", folder / "model", "--out", folder / "state/a.state")
    shards, features = folder / "shards", folder / "features"
    command("data", "encode", shards, "--encoder", folder / "model", "--out", features, "--workers", "1")
    _training(folder)
    _questions(folder)
    _unfinished(folder)


def command(*arguments: object) -> None:
    """Run a command of ma2mba that must succeed."""
    code = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stopped:
        code = stopped.code
    assert not code, f"{arguments}: exit code {code}"


def _media(folder: Path) -> None:
    for page in (folder, folder / "page"):
        page.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (36, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "p.png")
    Image.fromarray(noise).save(folder / "p.jpg")
    numbers = range(20)
    for name in ("v.mp4", "v.mkv", "v_v.mp4", "page/1.mp4", "page/2.mp4", "page/7.mp4", "7.mp4"):
        numbered_video.write(folder / name, numbers, Fraction(1, 10))
    (folder / "v.mkv").rename(folder / "w.mkv")


def _annotations(folder: Path) -> None:
    for kind in ("annotations", "recipes"):
        (folder / kind).mkdir()
    for name, files in FORMATS.items():
        for file, content in files.items():
            path = folder / "annotations" / file
            if file.endswith(".parquet"):
                pq.write_table(pa.Table.from_pylist(content), path)
            else:
                path.write_text(content if isinstance(content, str) else json.dumps(content))
        source = {"format": name, "annotations": [f"../annotations/{file}" for file in files], "media": "../media"}
        recipe = {"stage": "stage1_5" if "scene" in name else "stage2", "tokenizer": "../tokenizer.json"}
        recipe |= {"sources": [source], "image_size": 28, "fps": 2.0, "clips_per_part": 2}
        (folder / f"recipes/{name}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))


def _training(folder: Path) -> None:
    values = {"stage": "stage2", "data": "shards", "run": "run", "init_from": "model", "precision": "fp32"}
    values |= {"trainable": {"projector": 2e-3, "language_model": 1e-3}, "global_batch": 2, "steps": 2}
    values |= {"zero_config": "policy.json", "checkpoint": {"every": 1}, "log_every": 1}
    values |= {"magc": {"nesting": "sequence", "chunk_tokens": 64, "group_layers": 1}}
    (folder / "train.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    policy = {"zero_optimization": {"stage": 1, "reduce_bucket_size": 1000000}, "wall_clock_breakdown": False}
    (folder / "policy.json").write_text(json.dumps(policy))
    (folder / "hosts").write_text("# nodes\nnode-1 slots=1\nnode-2 slots=1\n")
    command("train", folder / "train.yaml")
    record = StepRecord(
        step=2,
        loss=float("nan"),
        gradient_norm=float("inf"),
        checkpoint=str(folder / "run/checkpoints/step-000001"),
        dtype="torch.float32",
        plan=vars(Plan(chunk_tokens=64)),
        recipe=load_recipe(folder / "train.yaml").model_dump(mode="json"),
        micro_batches=[[MicroBatchRecord(samples=[0], sample_ids=["1"], loss=1.0)]],
    )
    write(folder / "replay/step-000002.json", record)


def _questions(folder: Path) -> None:
    line = {"video": "media/p.png", "question": "w1 w2", "answer": "w3", "options": ["w3", "w4"]}
    lines = [line | {"id": f"q{i}", "task": "count"} for i in range(2)]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _unfinished(folder: Path) -> None:
    """Build half of the shards, so that the folder keeps its notes in .build."""
    recipe = folder / "recipes/llava.yaml"
    command("data", "build", recipe, "--out", folder / "unfinished", "--workers", "1", "--part", "0/2")
