from collections.abc import Callable

import pytest

from app.domain.errors import UnknownName
from app.domain.methods import METHODS
from app.domain.registry import Registry, resolve
from app.inference.port import ENGINES
from app.storage.port import STORAGE_BACKENDS


@pytest.fixture
def registry() -> Registry[int]:
    registry: Registry[int] = Registry("colour")
    registry.add("red", 1)
    registry.add("blue", 2)
    return registry


def test_a_registry_is_a_mapping_in_the_order_of_adding(registry: Registry[int]) -> None:
    assert dict(registry) == {"red": 1, "blue": 2}
    assert list(registry) == ["red", "blue"]
    assert "red" in registry
    assert "green" not in registry


def test_an_unknown_name_is_told_with_the_known_ones(registry: Registry[int]) -> None:
    with pytest.raises(UnknownName, match="unknown colour 'green'; known: blue, red"):
        registry["green"]


def test_a_name_is_registered_once(registry: Registry[int]) -> None:
    with pytest.raises(ValueError, match="colour 'red' is registered already"):
        registry.add("red", 3)
    assert registry["red"] == 1


def test_a_dotted_path_is_resolved() -> None:
    assert resolve("app.domain.registry:Registry") is Registry


@pytest.mark.parametrize(
    "path",
    [method.implementation for method in METHODS.values()]
    + [*ENGINES.values(), *STORAGE_BACKENDS.values()],
)
def test_whatever_is_registered_is_there(path: str) -> None:
    implementation: Callable[..., object] = resolve(path)
    assert callable(implementation)
