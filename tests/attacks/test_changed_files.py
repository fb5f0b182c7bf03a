"""Some rounds of the fuzz of our own formats (tests/fuzz/test_our_formats.py, `make fuzz`), always the same ones."""

import pytest

from tests.fuzz import bases
from tests.fuzz.formats import formats
from tests.fuzz.workshop import Workshop, complaints, workshop

ROUNDS = 12


@pytest.fixture(scope="module")
def server():
    with workshop() as started:
        yield started


@pytest.mark.parametrize("form", formats(bases.FORMATS))
def test_a_changed_file_is_read_or_refused(server: Workshop, form: str):
    results = server.fuzz(form, 0, ROUNDS)
    assert len(results) == ROUNDS
    assert not (found := complaints(form, results)), f"\n{found}"
