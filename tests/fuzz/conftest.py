"""Random input. FUZZ_SEED repeats a run and FUZZ_ROUNDS makes it longer: `make fuzz SEED=7 ROUNDS=100`."""

import os
import random
from collections.abc import Iterator

import pytest

ROUNDS = int(os.environ.get("FUZZ_ROUNDS", 60))


@pytest.fixture
def rounds() -> Iterator[random.Random]:
    """Yield a generator for each round. pytest shows the last printed seed of a test that fails."""
    first = int(os.environ.get("FUZZ_SEED", 0))

    def each() -> Iterator[random.Random]:
        for number in range(ROUNDS):
            print(f"\nFUZZ_SEED={first + number} FUZZ_ROUNDS=1 repeats this round")
            yield random.Random(first + number)

    return each()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "fuzz":
            item.add_marker(pytest.mark.fuzz)
