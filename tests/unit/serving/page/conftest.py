"""The page of an engine whose pace a test sets, with the real library of uploads."""

from pathlib import Path

import pytest

from ma2mba.serving.app import create_app
from ma2mba.serving.library import MediaLibrary
from ma2mba.serving.settings import Settings
from tests.unit.serving.fakes import running
from tests.unit.serving.page.paced import PacedEngine


@pytest.fixture
def engine() -> PacedEngine:
    return PacedEngine()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(model=tmp_path / "demo", cache=tmp_path / "cache", max_upload_gb=0.0001)


@pytest.fixture
def page(engine, settings):
    """The address of a page that everybody may open."""
    with running(create_app(settings, engine, MediaLibrary(settings))) as address:
        yield f"{address}/"


@pytest.fixture
def uploads(settings):
    """Return a function that lists the media in the folder of uploads."""
    return lambda: sorted(path for path in settings.uploads.iterdir() if path.suffix in (".video", ".png"))
