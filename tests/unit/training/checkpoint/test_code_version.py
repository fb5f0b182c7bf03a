"""Which code wrote a checkpoint: also when it runs from a checkout that is not installed."""

from importlib.metadata import PackageNotFoundError

import pytest

from ma2mba.training.checkpoint import code_version


@pytest.fixture(autouse=True)
def asked_anew():
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
    assert code_version.describe(installed).endswith("which is another than this")
