"""What a run leaves behind is complete, whatever the task: to go on from, and to be loaded.

A task joins by an entry of `CASES`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from app.domain.job_spec import AdapterSpec
from app.storage.local import LocalStorage
from tests.support.datasets import (
    digits,
    faq_categories,
    faq_text_pairs,
    faq_texts,
    movie_reviews,
    twitter_ner,
)
from tests.tasks.conftest import MINILM, FindModel, RunTask, encoded, make_task, task_spec
from tests.tasks.quantities import quantity_answers
from worker.tasks import LossOptions

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

STOP_AT = 2
BATCH_SIZE = 2


@dataclass(frozen=True)
class Case:
    """A few records of a task: three steps of two in each of two epochs.

    Attributes:
        records: called with how many.
        model: of the catalogue.
    """

    records: Callable[[int], list[dict[str, Any]]]
    model: str = MINILM
    method: str = "supervised"


CASES = {
    "text-classification": Case(movie_reviews),
    "token-classification": Case(twitter_ner),
    "question-answering": Case(lambda n: quantity_answers(n, answerable=0.5)),
    "image-classification": Case(digits, model="efficientnet-lite0"),
    "fill-mask": Case(faq_texts, method="continued_pretraining"),
    "feature-extraction": Case(faq_text_pairs),
    # Short answers: all of them are generated when they are judged.
    "text2text-generation": Case(
        lambda n: [
            {"prompt": one["text"], "completion": one["label"]} for one in faq_categories(n)
        ],
        "minilm-encoder-decoder",
    ),
}
# The others stand on the same encoder and loop; they take half a minute.
QUICK = {"text-classification", "image-classification", "text2text-generation"}

each = pytest.mark.parametrize(
    "task", [pytest.param(task, marks=() if task in QUICK else pytest.mark.slow) for task in CASES]
)


@each
def test_a_resumed_run_equals_an_uninterrupted_one(
    run_task: RunTask, storage: LocalStorage, find_model: FindModel, task: str
) -> None:
    case = CASES[task]
    spec = task_spec(
        storage,
        task,
        case.records(6),
        method=case.method,
        # Dropout, so that what is random in a step matters.
        adapter=AdapterSpec(options={"r": 4, "dropout": 0.1}),
        num_epochs=2,
        batch_size=BATCH_SIZE,
        max_length_tokens=24,
    )
    directory = find_model(case.model)
    whole = run_task(spec, directory)
    first = run_task(spec, directory, lease=2, answers={("step", STOP_AT): "stop"})
    assert (first.last["type"], first.last["step"]) == ("stopped", STOP_AT)

    second = run_task(spec, directory, lease=3, resume_from=first.last["prefix"])

    steps = {one["step"]: one["train_loss"] for one in whole.of_type("step")}
    assert {one["step"]: one["train_loss"] for one in second.of_type("step")} == {
        step: loss for step, loss in steps.items() if step > STOP_AT
    }
    # Weights, optimizer, metrics: all of it, to the last bit.
    assert files_below(storage.directory(second.last["prefix"])) == files_below(
        storage.directory(whole.last["prefix"])
    )


@each
def test_what_is_saved_is_what_was_trained(
    run_task: RunTask, storage: LocalStorage, find_model: FindModel, task: str
) -> None:
    """The adapter in a fresh model, under another head, gives the loss that was validated."""
    case = CASES[task]
    records = case.records(6)
    spec = task_spec(
        storage,
        task,
        records,
        records,
        method=case.method,
        batch_size=BATCH_SIZE,
        learning_rate=0.01,
    )
    directory = find_model(case.model)
    attempt = run_task(spec, directory)
    validated = attempt.of_type("validation")
    adapter = storage.directory(attempt.last["prefix"]) / "adapter"

    made = make_task(task, directory, records, seed=99)
    examples = encoded(made, records)
    fresh = mean_loss(made, made.model, examples)
    tuned = mean_loss(made, peft.PeftModel.from_pretrained(made.model, adapter).eval(), examples)

    assert tuned == pytest.approx(validated[-1]["valid_loss"], rel=1e-4)
    assert abs(fresh - validated[-1]["valid_loss"]) > 1e-2


@torch.no_grad()
def mean_loss(task: Any, model: Any, examples: Sequence[Any]) -> float:
    # In batches as in the run: some losses compare the examples of one.
    batches = [examples[at : at + BATCH_SIZE] for at in range(0, len(examples), BATCH_SIZE)]
    losses = [task.loss(model, task.collate(batch), LossOptions()) for batch in batches]
    return float(torch.cat([one.sums / one.weights for one in losses]).mean())


def files_below(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
