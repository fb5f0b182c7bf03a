"""A random model of this project, and what transformers loads from a folder with its weights."""

import sys

import pytest
from transformers import dynamic_module_utils

from tests.unit.model.hf_folder import build_model, load, write_folder


@pytest.fixture(scope="session")
def modules_cache(tmp_path_factory):
    """Keep the copies that transformers makes of a folder's code out of the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.setattr(sys, "path", list(sys.path))
        yield


@pytest.fixture(scope="session")
def own():
    return build_model()


@pytest.fixture(scope="session")
def hf_folder(own, modules_cache, tmp_path_factory):
    return write_folder(own, tmp_path_factory.mktemp("hf") / "model")


@pytest.fixture(scope="session")
def hf_model(hf_folder):
    return load(hf_folder)
