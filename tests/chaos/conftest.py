"""One lab for all small experiments."""

from collections.abc import Iterator

import pytest

from tests.chaos.lab import Lab, open_lab

# Any seed must do; a fixed one makes a failure easier to see again.
SEED = 20


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    with open_lab(SEED) as lab:
        yield lab
