from typing import Any

import pytest
from pydantic import ValidationError

from app.domain.datasets import RECORD_KINDS
from app.domain.methods import METHODS, SupervisedHyperparameters, resolve_hyperparameters
from app.domain.tasks import TASKS


def resolved(record_count: int, **requested: Any) -> dict[str, int | float]:
    hyperparameters = SupervisedHyperparameters(**requested)
    return {one.name: one.value for one in resolve_hyperparameters(hyperparameters, record_count)}


@pytest.mark.parametrize(
    ("record_count", "epochs"),
    [
        (1, 10),
        (30, 10),
        (31, 10),
        (50, 6),
        (99, 4),
        (100, 3),
        (999, 3),
        (1_000, 2),
        (9_999, 2),
        (10_000, 1),
        (1_000_000, 1),
    ],
)
def test_auto_epochs_fall_with_the_size_of_the_set(record_count: int, epochs: int) -> None:
    assert resolved(record_count)["n_epochs"] == epochs


@pytest.mark.parametrize(
    ("record_count", "batch_size"),
    [
        (1, 1),
        (3, 3),
        (4, 4),
        (399, 4),
        (400, 8),
        (800, 16),
        (3_199, 32),
        (3_200, 64),
        (1_000_000, 64),
    ],
)
def test_auto_batch_size_grows_with_the_size_of_the_set(record_count: int, batch_size: int) -> None:
    assert resolved(record_count)["batch_size"] == batch_size


@pytest.mark.parametrize("record_count", [*range(1, 500), 999, 1_000, 5_000, 10_000, 10**7])
def test_whatever_auto_becomes_could_have_been_asked_for(record_count: int) -> None:
    values = resolved(record_count)
    SupervisedHyperparameters.model_validate(values)
    assert values["batch_size"] <= record_count


def test_what_was_asked_for_stays_and_needs_no_reason() -> None:
    requested = SupervisedHyperparameters(n_epochs=2, batch_size=8, learning_rate_multiplier=0.5)
    resolutions = resolve_hyperparameters(requested, 1_000_000)
    assert [(one.name, one.value, one.reason) for one in resolutions] == [
        ("n_epochs", 2, None),
        ("batch_size", 8, None),
        ("learning_rate_multiplier", 0.5, None),
    ]


def test_every_auto_value_has_a_reason_that_names_what_it_saw() -> None:
    resolutions = resolve_hyperparameters(SupervisedHyperparameters(), 96)
    reasons = {one.name: one.reason or "" for one in resolutions}
    assert "96 records" in reasons["n_epochs"]
    assert "96 records" in reasons["batch_size"]
    assert "catalogue" in reasons["learning_rate_multiplier"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_epochs", 0),
        ("n_epochs", 51),
        ("n_epochs", 1.5),
        ("n_epochs", "3"),
        ("n_epochs", True),
        ("batch_size", 0),
        ("batch_size", 257),
        ("learning_rate_multiplier", 0),
        ("learning_rate_multiplier", -1),
        ("learning_rate_multiplier", float("nan")),
        ("learning_rate_multiplier", float("inf")),
        ("learning_rate_multiplier", "fast"),
        ("beta", 0.1),
    ],
)
def test_hyperparameters_out_of_bounds_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=name):
        SupervisedHyperparameters.model_validate({name: value})


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_from_known_kinds_of_records(name: str) -> None:
    method = METHODS[name]
    assert method.summary.endswith(".")
    assert method.hyperparameters.model_fields
    learnt = frozenset[str]().union(*(task.kinds_for(name) for task in TASKS.values()))
    assert learnt
    assert learnt <= {kind.name for kind in RECORD_KINDS}
