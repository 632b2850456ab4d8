"""The registry of tasks, and the choice of one by model, method and records."""

import pytest

from app.domain.datasets import RECORD_KINDS
from app.domain.errors import InvalidInput
from app.domain.methods import METHODS
from app.domain.metrics import METRICS
from app.domain.tasks import TASKS, choose_task

ENCODER = ("text-classification", "token-classification", "fill-mask")


@pytest.mark.parametrize("name", TASKS)
def test_every_task_names_what_there_is(name: str) -> None:
    task = TASKS[name]
    assert task.summary.endswith(".")
    assert task.main_metric in task.metrics
    assert task.metrics <= set(METRICS)
    assert task.record_kinds.keys() <= set(METHODS)
    kinds = frozenset[str]().union(*task.record_kinds.values())
    assert kinds
    assert kinds <= {kind.name for kind in RECORD_KINDS}


def test_records_tell_the_task() -> None:
    assert choose_task(ENCODER, "supervised", "labelled_text") == "text-classification"
    assert choose_task(ENCODER, "supervised", "text_spans") == "token-classification"
    assert choose_task(ENCODER, "continued_pretraining", "text") == "fill-mask"


def test_what_fits_two_tasks_is_to_be_named() -> None:
    with pytest.raises(InvalidInput, match="name one of text-classification, text-class") as asked:
        choose_task(("text-classification",) * 2, "supervised", "labelled_text")
    assert asked.value.param == "tunesmith.task"


def test_records_of_another_method_are_told_with_it() -> None:
    with pytest.raises(InvalidInput, match="from which dpo learns") as refused:
        choose_task(("text-generation",), "supervised", "preference")
    assert refused.value.param == "training_file"


def test_a_method_of_other_tasks_is_refused_by_its_field() -> None:
    with pytest.raises(InvalidInput) as refused:
        choose_task(("image-classification",), "dpo", "labelled_image")
    assert refused.value.param == "method"
