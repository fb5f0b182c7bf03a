"""The version of the code, also in a checkout that is not installed."""

from importlib.metadata import PackageNotFoundError

import pytest

from ma2mba.training.checkpoint import code_version


@pytest.fixture(autouse=True)
def empty_cache():
    code_version.code_version.cache_clear()
    yield
    code_version.code_version.cache_clear()


def test_a_checkout_that_is_not_installed_has_its_commit(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    installed = code_version.code_version()
    code_version.code_version.cache_clear()
    monkeypatch.setattr(code_version, "version", missing)
    assert code_version.code_version() == installed | {"version": "not installed"}
    assert code_version.describe(installed).endswith("a different version")
