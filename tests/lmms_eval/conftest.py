"""A random model that answers with letters, small videos, and tasks of lmms-eval on local files.

These tests run in the environment of lmms-eval: `make lmms-eval-test`. Without lmms-eval, none of them is collected.
"""

import importlib.util
import os
from pathlib import Path

import pytest

collect_ignore_glob = [] if importlib.util.find_spec("lmms_eval") else ["test_*.py"]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    from tests.lmms_eval.letters import write_model

    return write_model(tmp_path_factory.mktemp("letters"))


@pytest.fixture(scope="session")
def hf_home(tmp_path_factory) -> Path:
    """Return a home of Hugging Face that has the videos of every task. The tasks read its path when they are loaded."""
    from tests.lmms_eval.published import TASKS, write_videos

    home = tmp_path_factory.mktemp("hf")
    os.environ.update(HF_HOME=str(home), HF_DATASETS_CACHE=str(home / "datasets"))
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    # A task that looks for the network finds nothing, at once.
    os.environ.update(HTTP_PROXY="http://127.0.0.1:9", HTTPS_PROXY="http://127.0.0.1:9")
    for task in TASKS.values():
        write_videos(home / task.media / task.videos, task.names)
    return home


@pytest.fixture(scope="session")
def task_folder(hf_home, tmp_path_factory) -> Path:
    """Return a folder of YAML files: each includes a shipped task and reads local records."""
    from tests.lmms_eval.published import TASKS

    folder = tmp_path_factory.mktemp("tasks")
    for name, task in TASKS.items():
        (folder / f"{name}.yaml").write_text(task.yaml(name, task.write(folder / name)))
    return folder
