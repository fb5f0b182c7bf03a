"""A page with a fake engine and a fake library, and a browser."""

import pytest

pytest.importorskip("gradio", reason="the extra serve is not installed")

from ma2mba.serving.settings import Settings
from tests.unit.serving.page.fakes import FakeEngine, FakeLibrary, free_port, served

CHROMIUM = "/usr/bin/chromium"


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def library(tmp_path):
    folder = tmp_path / "uploads"
    folder.mkdir()
    return FakeLibrary(folder, most=100_000)


@pytest.fixture
def settings(tmp_path):
    return Settings(model=tmp_path / "demo", port=free_port(), max_upload_gb=0.0001)


@pytest.fixture
def page(engine, library, settings):
    """The address of a page that everybody may open."""
    with served(engine, library, settings) as address:
        yield address
