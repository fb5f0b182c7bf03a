"""A task file about pictures, which are read as videos of one frame."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def task_file(tmp_path) -> Path:
    """Return a task file of six questions: two tasks about each of three pictures."""
    lines = []
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (56, 56, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        for task, options in (("needle", ["a red star", "a ring", "a cross"]), ("count", ["one", "two"])):
            record = {"id": f"{i}-{task}", "video": f"{i}.png", "question": f"What {task}?", "answer": options[0]}
            lines.append(json.dumps(record | {"options": options, "task": task, "seconds": 1.0}))
    path = tmp_path / "eval.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path
