"""What a run publishes and when it ends: best checkpoint, early stopping, condition to deploy."""

import base64
import json
from dataclasses import replace
from typing import Any

import pytest

from app.domain.errors import TrainingFailed
from app.domain.job_spec import DeployCondition, EarlyStopping, EvaluationSpec, JobSpec
from app.storage.local import LocalStorage
from tests.training.conftest import SHORT_CHATS, Attempt, RunAttempt, job_spec, put_records
from worker.training.best import best_step, epochs_since_best

PICTURES = {"loss.png": b"\x89PNG", "loss.svg": b"<?xml"}

FOREIGN = [
    {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]}
    for answer in ("Η θάλασσα είναι ήρεμη.", "Сегодня идёт снег.", "Wir müssen früh aufstehen.")
]


@pytest.fixture
def overfitting(storage: LocalStorage) -> JobSpec:
    """What it learns does not help with other languages for long."""
    training = put_records(storage, "train", SHORT_CHATS[:2])
    heldout = put_records(storage, "heldout", FOREIGN)
    return job_spec(training, heldout, num_epochs=6, learning_rate=0.02, scheduler="constant")


def losses_of(attempt: Attempt) -> list[tuple[int, float]]:
    return [(one["step"], one["valid_loss"]) for one in attempt.of_type("validation")]


def report_of(attempt: Attempt) -> Any:
    return json.loads(base64.b64decode(attempt.last["results"]["report.json"]))


def test_the_best_checkpoint_is_published(run_attempt: RunAttempt, overfitting: JobSpec) -> None:
    spec = replace(overfitting, evaluation=EvaluationSpec(best_metric="loss"))

    attempt = run_attempt(spec)

    step = min(losses_of(attempt)[1:], key=lambda one: one[1])[0]
    assert step < 6, "the last epoch is the best: nothing is shown"
    assert attempt.last["step"] == step
    assert attempt.last["prefix"].endswith(f"step-{step}")
    # What is reported is measured with the weights that are published.
    published = dict(losses_of(attempt))[step]
    assert attempt.last["report"]["metrics"]["loss"]["tuned"] == pytest.approx(published, rel=1e-5)
    assert report_of(attempt)["best_step"] == step
    assert attempt.last["notes"] == [f"The model is that of step {step}, the best by loss"]


def test_without_a_metric_the_last_checkpoint_is_published(
    run_attempt: RunAttempt, overfitting: JobSpec
) -> None:
    assert run_attempt(overfitting).last["step"] == 6


def test_a_run_ends_when_it_stops_improving(run_attempt: RunAttempt, overfitting: JobSpec) -> None:
    whole = losses_of(run_attempt(overfitting))
    chosen = replace(overfitting.hyperparameters, early_stopping=EarlyStopping(patience=1))

    attempt = run_attempt(replace(overfitting, hyperparameters=chosen, job_id="early"))

    seen = losses_of(attempt)
    assert seen == whole[: len(seen)]
    assert len(seen) < len(whole)
    best = min(seen, key=lambda one: one[1])
    assert seen[-1][0] > best[0]
    assert attempt.last["step"] == (best[0] or seen[1][0])
    assert attempt.last["notes"][0].startswith(f"Stopped early after step {seen[-1][0]}: loss has")


def test_a_resumed_run_chooses_as_an_uninterrupted_one(
    run_attempt: RunAttempt, overfitting: JobSpec
) -> None:
    spec = replace(overfitting, evaluation=EvaluationSpec(best_metric="loss"))
    whole = run_attempt(spec)
    first = run_attempt(spec, lease=2, answers={("step", 5): "stop"})

    second = run_attempt(
        spec,
        lease=3,
        resume_from=first.last["prefix"],
        epoch_ends={one["step"]: one["prefix"] for one in first.of_type("checkpoint")},
    )

    assert second.last["step"] == whole.last["step"]
    assert second.last["report"] == whole.last["report"]


def test_a_report_compares_base_and_tuned_on_held_out_records(
    run_attempt: RunAttempt, overfitting: JobSpec
) -> None:
    attempt = run_attempt(replace(overfitting, job_id="report"))

    report = report_of(attempt)
    assert report["held_out"] == {
        "source": "validation_file", "file_id": "heldout", "rows": 3, "share": None, "seed": None
    }  # fmt: skip
    losses = losses_of(attempt)
    found = attempt.last["report"]["metrics"]["loss"]
    assert found["base"] == pytest.approx(losses[0][1], rel=1e-5)
    assert found["tuned"] == pytest.approx(losses[-1][1], rel=1e-5)
    assert {one["row"] for one in report["worst_rows"]} == {1, 2, 3}
    for name, start in PICTURES.items():
        assert base64.b64decode(attempt.last["results"][name]).startswith(start)


def test_a_share_of_the_training_file_is_held_out(
    run_attempt: RunAttempt, storage: LocalStorage
) -> None:
    spec = job_spec(put_records(storage, "train", SHORT_CHATS), batch_size=1)
    spec = replace(spec, evaluation=EvaluationSpec(holdout=0.4))

    attempt = run_attempt(spec)

    report = report_of(attempt)
    assert attempt.last["step"] == 3, "two of the five records are not trained on"
    assert (report["held_out"]["rows"], report["held_out"]["share"]) == (2, 0.4)
    # What is judged on is not counted as learnt from.
    assert (attempt.of_type("prepared")[0]["records"], report["training_rows"]) == (3, 3)


@pytest.mark.parametrize(("min_gain", "is_published"), [(1e6, False), (0.0, True)])
def test_a_model_that_does_not_gain_enough_is_refused(
    run_attempt: RunAttempt, storage: LocalStorage, min_gain: float, is_published: bool
) -> None:
    file = put_records(storage, "train", SHORT_CHATS)
    spec = job_spec(file, file, num_epochs=2, learning_rate=1e-2)
    condition = DeployCondition("loss", min_gain)
    attempt = run_attempt(replace(spec, evaluation=EvaluationSpec(deploy_if=condition)))

    refusal = attempt.last["refusal"]
    assert (refusal is None) == is_published
    assert is_published or "a gain of" in refusal


def test_the_first_of_equals_is_the_best() -> None:
    assert best_step("loss", [(0, 2.0), (1, 1.0), (2, 1.0)]) == 1
    assert best_step("accuracy", [(0, 0.2), (1, 0.1), (2, 0.4)]) == 2
    assert best_step("accuracy", [(0, None), (1, None)]) is None


def test_patience_counts_validations_without_enough_improvement() -> None:
    history = [(0, 2.0), (1, 1.0), (2, 0.95), (3, 0.94)]
    assert epochs_since_best("loss", history, min_delta=0.0) == 0
    assert epochs_since_best("loss", history, min_delta=0.1) == 2
    assert epochs_since_best("accuracy", history, min_delta=0.0) == 3


def test_a_metric_that_is_never_measured_ends_the_run_before_its_first_step(
    run_attempt: RunAttempt, overfitting: JobSpec
) -> None:
    attempt = Attempt()

    with pytest.raises(TrainingFailed, match="'wer' is not measured in this job") as failed:
        run_attempt(
            replace(overfitting, evaluation=EvaluationSpec(best_metric="wer")), attempt=attempt
        )

    assert failed.value.param == "tunesmith.evaluation.best_metric"
    assert not attempt.of_type("step")
