"""lmms-eval runs shipped tasks on local files. Its answers are those of a chat that is asked the same."""

from pathlib import Path

import lmms_eval.evaluator
import pytest
from lmms_eval.tasks import TaskManager

from ma2mba import VideoChat
from ma2mba.video.frames import FrameReader
from tests.lmms_eval.letters import letters
from tests.lmms_eval.published import TASKS, ShippedTask


@pytest.fixture(autouse=True)
def answers(monkeypatch):
    with letters(monkeypatch):
        yield


def evaluate(task_folder: Path, model_folder: Path, *names: str, **options):
    tasks = [f"local_{name}" for name in names]
    manager = TaskManager(include_path=str(task_folder), include_defaults=False, model_name="ma2mba")
    return lmms_eval.evaluator.simple_evaluate(
        model="ma2mba",
        model_args=f"pretrained={model_folder},{options.pop('model_args', 'frames=1fps')}",
        tasks=tasks,
        task_manager=manager,
        device="cpu",
        bootstrap_iters=0,
        **options,
    )


def asked_directly(task: ShippedTask, videos: Path, model_folder: Path) -> list[str]:
    """Return the answer to each record as a chat of its own gives it."""
    found, empty = [], VideoChat.open(model_folder, "cpu")
    with FrameReader() as reader:
        for record in task.records:
            chat = empty.fork()
            chat.watch(videos / task.file(record), reader=reader, hashed=False)
            found.append(chat.ask(task.prompt(record), repetition_stop=True).text)
    return found


def answers_in(result, name: str) -> list[str]:
    samples = sorted(result["samples"][f"local_{name}"], key=lambda sample: sample["doc_id"])
    return [sample["resps"][0][0] for sample in samples]


def score_in(result, name: str) -> float:
    return result["results"][f"local_{name}"][f"{TASKS[name].metric},none"]


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("batch_size", [1, 7])
def test_a_shipped_task_gets_the_answers_of_a_chat(name, batch_size, task_folder, model_folder, hf_home):
    task = TASKS[name]
    result = evaluate(task_folder, model_folder, name, batch_size=batch_size)
    expected = asked_directly(task, hf_home / task.videos, model_folder)
    assert answers_in(result, name) == expected
    assert len(set(expected)) > 3
