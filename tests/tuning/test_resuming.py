"""Runs that are interrupted and go on, by kinds of adapter that have more than weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.domain.job_spec import AdapterRef, AdapterSpec
from app.storage.local import LocalStorage
from tests.tasks.conftest import RunTask, task_spec
from tests.tasks.test_resuming import files_below
from tests.training.conftest import SHORT_CHATS, RunAttempt, job_spec, put_records
from tests.tuning.samples import SAMPLES

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

# Ten steps: AdaLoRA takes ranks away from the second on, and is done with it after the seventh.
STEPS = 10
ADALORA = {"init_r": 4, "target_r": 2, "dropout": 0.1}


@pytest.mark.parametrize("stop_at", [pytest.param(3, marks=pytest.mark.slow), 8])
def test_adalora_goes_on_with_the_ranks_that_it_kept(
    run_task: RunTask, storage: LocalStorage, minilm: Path, stop_at: int
) -> None:
    spec = task_spec(
        storage,
        "text-classification",
        SAMPLES["text-classification"].records,
        adapter=AdapterSpec("adalora", ADALORA),
        num_epochs=STEPS // 2,
        batch_size=2,
    )
    whole = run_task(spec, minilm)
    first = run_task(spec, minilm, lease=2, answers={("step", stop_at): "stop"})
    second = run_task(spec, minilm, lease=3, resume_from=first.last["prefix"])

    assert first.last["step"] == stop_at
    assert files_of(storage, second) == files_of(storage, whole)
    names = files_of(storage, second)
    assert any("extra.safetensors" in name for name in names)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        pytest.param("adalora", ADALORA, marks=pytest.mark.slow),
        pytest.param("lora", {"r": 4, "init": "pissa", "dropout": 0.1}, marks=pytest.mark.slow),
        ("p-tuning", {"num_virtual_tokens": 4, "encoder_hidden_size": 16}),
        pytest.param("full", {}, marks=pytest.mark.slow),
    ],
)
def test_text_generation_goes_on(
    run_attempt: RunAttempt, storage: LocalStorage, kind: str, options: dict[str, Any]
) -> None:
    spec = replace(
        job_spec(put_records(storage, "train", SHORT_CHATS), num_epochs=2, weight_decay=0.1),
        adapter=AdapterSpec(kind, options),
    )
    whole = run_attempt(spec)
    first = run_attempt(spec, lease=2, answers={("step", 4): "stop"})
    second = run_attempt(spec, lease=3, resume_from=first.last["prefix"])

    assert first.last["step"] == 4
    assert files_of(storage, second) == files_of(storage, whole)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("adalora", {"init_r": 4, "target_r": 2}),
        pytest.param("lora", {"r": 4, "init": "pissa"}, marks=pytest.mark.slow),
        pytest.param("prefix-tuning", {"num_virtual_tokens": 4}, marks=pytest.mark.slow),
        pytest.param("full", {}, marks=pytest.mark.slow),
    ],
)
def test_a_run_starts_from_another_model_of_its_kind(
    run_attempt: RunAttempt, storage: LocalStorage, kind: str, options: dict[str, Any]
) -> None:
    file = put_records(storage, "train", SHORT_CHATS)
    spec = replace(
        job_spec(file, file, num_epochs=4, learning_rate=1e-2), adapter=AdapterSpec(kind, options)
    )
    first = run_attempt(spec)
    start = AdapterRef("ft:tiny:first", f"{first.last['prefix']}/adapter")
    second = run_attempt(replace(spec, job_id="ftjob-second", start_from=start), lease=2)

    ends = [one["valid_loss"] for one in first.of_type("validation")]
    begins = [one["valid_loss"] for one in second.of_type("validation")]
    assert ends[-1] < ends[0]
    assert begins[0] == pytest.approx(ends[-1], abs=1e-4)


def files_of(storage: LocalStorage, attempt: Any) -> dict[str, bytes]:
    return files_below(storage.directory(attempt.last["prefix"]))
