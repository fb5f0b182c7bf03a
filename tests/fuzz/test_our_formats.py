"""A file of ours with a random change is read as before, or refused with one line: there is no third outcome.

See sandbox.py for what a command may not do, mutations.py for the changes, formats.py for the formats and commands.
"""

import os

import pytest

from tests.fuzz import bases
from tests.fuzz.conftest import ROUNDS
from tests.fuzz.formats import formats
from tests.fuzz.workshop import Workshop, complaints, workshop

FORMATS = formats(bases.FORMATS)


@pytest.fixture(scope="module")
def server():
    with workshop() as started:
        yield started


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("form", FORMATS)
def test_a_changed_file_is_read_or_refused(server: Workshop, form: str):
    first = int(os.environ.get("FUZZ_SEED", 0))
    print(f"FUZZ_SEED={first} FUZZ_ROUNDS={ROUNDS} repeats this test")
    results = server.fuzz(form, first, ROUNDS)
    assert sorted(result["seed"] for result in results) == list(range(first, first + ROUNDS))
    assert not (found := complaints(form, results)), f"\n{found}"
