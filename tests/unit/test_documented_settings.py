"""Every variable that a process reads is told to whoever runs it."""

from collections.abc import Iterator, Mapping

import pytest

from app.settings import load_settings
from tests.support.service import REPOSITORY
from worker.serving.settings import load_engine_settings


class Recorded(Mapping[str, str]):
    """An empty environment that remembers what was looked for."""

    def __init__(self) -> None:
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.asked.add(name)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


@pytest.mark.parametrize("page", ["README.md", ".env.example"])
def test_every_variable_is_documented(page: str) -> None:
    environment = Recorded()
    load_settings(environment)
    load_engine_settings(environment)
    text = (REPOSITORY / page).read_text()
    assert len(environment.asked) > 40
    assert {name for name in environment.asked if name not in text} == set()
