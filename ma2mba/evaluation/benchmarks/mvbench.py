"""MVBench: 20 tasks of 200 questions each about short videos. Five tasks ask about a stretch of a video.

Prompts and folders are from the authors' notebook (github.com/OpenGVLab/Ask-Anything, video_chat2/mvbench.ipynb). There
the answer starts with "Best option:("; here the model writes the whole answer.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from ma2mba.annotations import mvbench
from ma2mba.annotations.fields import RecordError
from ma2mba.annotations.media import MediaFolder
from ma2mba.errors import UserError
from ma2mba.evaluation.benchmarks.base import Benchmark, Source, lettered
from ma2mba.evaluation.items import Item
from ma2mba.files import inside

FOLDERS = {
    "action_sequence": ("star/Charades_v1_480", "star/Charades_segment"),
    "action_prediction": ("star/Charades_v1_480", "star/Charades_segment"),
    "action_antonym": ("ssv2_video", "ssv2_video_mp4"),
    "fine_grained_action": ("Moments_in_Time_Raw/videos",),
    "unexpected_action": ("FunQA_test/test",),
    "object_existence": ("clevrer/video_validation",),
    "object_interaction": ("star/Charades_v1_480", "star/Charades_segment"),
    "object_shuffle": ("perception/videos",),
    "moving_direction": ("clevrer/video_validation",),
    "action_localization": ("sta/sta_video", "sta/sta_video_segment"),
    "scene_transition": ("scene_qa/video",),
    "action_count": ("perception/videos",),
    "moving_count": ("clevrer/video_validation",),
    "moving_attribute": ("clevrer/video_validation",),
    "state_change": ("perception/videos",),
    "fine_grained_pose": ("nturgbd", "nturgbd_convert"),
    "character_order": ("perception/videos",),
    "egocentric_navigation": ("vlnqa",),
    "episodic_reasoning": ("tvqa/frames_fps3_hq", "tvqa/video_fps3_hq_segment"),
    "counterfactual_inference": ("clevrer/video_validation",),
}
"""Task -> the folders of its videos. Videos in a folder *_segment are cut already."""
LAYOUT = {"test": ("json/*.json", "*/train*.parquet", "*/train/*.parquet", "*.json")}
ROOTS = ("video", "", "videos", "data0613", "video/data0613")
PICTURES_PER_SECOND = 3.0
SYSTEM = (
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of "
    "objects, and the action and pose of persons. Based on your observations, select the best option that accurately "
    "addresses the question."
)
ONLY = "Only give the best option."


def items(source: Source) -> Iterator[Item]:
    """Make the questions, task by task. Task: the name of the file."""
    for file in source.files:
        task = _task(file[0])
        alone = Source(source.folder, source.media, [file])
        for number, record in enumerate(alone.records(mvbench.read), 1):
            medium, frames, cut = _medium(source, task, record.where, record.media)
            options = lettered(record.candidates, "({letter}) {text}")
            yield Item(
                id=f"{task}-{number}",
                medium=medium,
                question=record.question,
                options=record.candidates,
                gold=record.candidates[record.answer],
                gold_index=record.answer,
                start=None if cut else record.start,
                end=None if cut else record.end,
                picture_rate=PICTURES_PER_SECOND if frames else None,
                task=task,
                prompt=f"{SYSTEM}\nQuestion: {record.question}\nOptions:\n{options}\n{ONLY}",
            )


def _task(file: str) -> str:
    """Return the task of an annotation file: the name of the file, or of a folder around it."""
    names = [Path(file).stem, *(parent.name for parent in Path(file).parents)]
    task = next((name for name in names if name in FOLDERS), None)
    if task is None:
        raise UserError(f"{file}: not a task of MVBench. Its tasks are {', '.join(FOLDERS)}")
    return task


def _medium(source: Source, task: str, where: str, name: str) -> tuple[Path, bool, bool]:
    """Return the path of a video, whether it is a folder of pictures, and whether it is cut already."""
    places = [str(Path(root, folder)) for root in ROOTS for folder in (*FOLDERS[task], task, "")]
    for place in places:
        if task == "episodic_reasoning" and _folder(source, place, name, where):
            return source.media / place / name, True, place.endswith("_segment")
    path = source.video(where, [name], places)
    pictures = task == "episodic_reasoning" and not os.path.isfile(path)
    return (source.media / places[0] / name if pictures else path), pictures, path.parent.name.endswith("_segment")


def _folder(source: Source, place: str, name: str, where: str) -> bool:
    try:
        MediaFolder(source.media).path(name)
    except RecordError as error:
        raise UserError(f"{where}: {error}. Correct this record") from error
    return os.path.isdir(inside(source.media, f"{place}/{name}", where))


BENCHMARK = Benchmark("mvbench", "MVBench", LAYOUT, items)
