"""A random model that answers with letters, small videos, and tasks of lmms-eval on local files.

These tests run in the environment of lmms-eval: `make lmms-eval-test`. Without lmms-eval, none of them is collected.
"""

import importlib.util
import json
import os
from pathlib import Path

import pytest

collect_ignore_glob = [] if importlib.util.find_spec("lmms_eval") else ["test_*.py"]

from tests.lmms_eval.letters import write_model  # noqa: E402
from tests.lmms_eval.published import TASKS, write_videos  # noqa: E402


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("letters"))


@pytest.fixture(scope="session")
def hf_home(tmp_path_factory) -> Path:
    """Return a home of Hugging Face that has the videos of every task. The tasks read its path when they are loaded."""
    home = tmp_path_factory.mktemp("hf")
    os.environ.update(HF_HOME=str(home), HF_DATASETS_CACHE=str(home / "datasets"))
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    # A task that looks for the network finds nothing, at once.
    os.environ.update(HTTP_PROXY="http://127.0.0.1:9", HTTPS_PROXY="http://127.0.0.1:9")
    for task in TASKS.values():
        write_videos(home / task.videos, task.names)
    return home


@pytest.fixture(scope="session")
def task_folder(hf_home, tmp_path_factory) -> Path:
    """Return a folder of YAML files: each includes a shipped task and reads local records."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, task in TASKS.items():
        data = folder / f"{name}.json"
        data.write_text("\n".join(json.dumps(record) for record in task.records))
        (folder / f"{name}.yaml").write_text(task.yaml(name, data))
    return folder
