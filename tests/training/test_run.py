"""A run's messages: what is measured when, how it ends early, how it fails."""

import csv
import io
from dataclasses import replace

import pytest

from app.domain.errors import InvalidInput, StorageFull, TrainingFailed
from app.domain.job_spec import AdapterSpec, JobSpec, LoraSpec
from app.storage.local import LocalStorage
from tests.training.conftest import SHORT_CHATS, Attempt, RunAttempt, job_spec, put_records
from worker.training.bases import WarmBases
from worker.training.failures import explain
from worker.training.manifest import BaseModelRef

FAILING = "tests.training.failing_methods"


@pytest.fixture
def spec(storage: LocalStorage) -> JobSpec:
    """Two epochs of three steps, with a validation file."""
    training = put_records(storage, "train", SHORT_CHATS)
    return job_spec(training, put_records(storage, "valid", SHORT_CHATS[:2]), num_epochs=2)


def test_tells_the_whole_life_of_a_run(run_attempt: RunAttempt, spec: JobSpec) -> None:
    attempt = run_attempt(spec)

    assert [(m["type"], m.get("step")) for m in attempt.messages] == [
        ("prepared", None),
        ("validation", 0),
        ("step", 1),
        ("step", 2),
        ("step", 3),
        ("validation", 3),
        ("checkpoint", 3),
        ("step", 4),
        ("step", 5),
        ("step", 6),
        ("validation", 6),
        ("checkpoint", 6),
        ("finished", 6),
    ]
    prepared = attempt.messages[0]
    assert prepared["records"] == 5
    assert prepared["total_steps"] == 6
    assert prepared["start_step"] == 0
    final = attempt.of_type("checkpoint")[-1]
    assert final["epoch_end"]
    assert final["prefix"] == "jobs/ftjob-test/e1/step-6"
    assert final["metrics"].keys() == {
        "step",
        "train_loss",
        "train_mean_token_accuracy",
        "valid_loss",
        "valid_mean_token_accuracy",
        "full_valid_loss",
        "full_valid_mean_token_accuracy",
    }
    assert attempt.last["trained_tokens"] == 2 * prepared["tokens"] == final["trained_tokens"]


def test_a_step_tells_what_it_measured(run_attempt: RunAttempt, spec: JobSpec) -> None:
    first, *_, last = run_attempt(spec).of_type("step")

    assert (first["step"], first["total_steps"], first["epoch_of_data"]) == (1, 6, 1 / 3)
    assert last["epoch_of_data"] == 2.0
    assert first["learning_rate"] == 1e-3
    assert 9 < first["train_loss"] < 12  # ln(49152) = 10.8: the tiny model knows nothing.
    assert 0 <= first["train_mean_token_accuracy"] <= 1
    assert first["grad_norm"] > 0
    assert first["tokens_per_second"] > 0
    assert last["train_loss"] < first["train_loss"]


def test_results_have_one_line_a_step(run_attempt: RunAttempt, spec: JobSpec) -> None:
    attempt = run_attempt(spec)

    rows = list(csv.DictReader(io.StringIO(attempt.last["metrics_csv"])))

    assert list(rows[0]) == [
        "step",
        "train_loss",
        "train_accuracy",
        "valid_loss",
        "valid_mean_token_accuracy",
    ]
    assert [float(row["train_loss"]) for row in rows] == [
        message["train_loss"] for message in attempt.of_type("step")
    ]
    assert [row["step"] for row in rows if row["valid_loss"]] == ["3", "6"]


def test_a_run_without_validation_has_none(run_attempt: RunAttempt, spec: JobSpec) -> None:
    attempt = run_attempt(replace(spec, validation_file=None))

    assert not attempt.of_type("validation")
    assert "valid_loss" not in attempt.of_type("checkpoint")[-1]["metrics"]


def test_a_stop_keeps_the_step_that_was_taken(run_attempt: RunAttempt, spec: JobSpec) -> None:
    attempt = run_attempt(spec, answers={("step", 2): "stop"})

    assert [m["step"] for m in attempt.of_type("step")] == [1, 2]
    assert attempt.last["type"] == "stopped"
    assert attempt.last["prefix"] == "jobs/ftjob-test/e1/step-2"
    assert attempt.last["manifest_sha256"]


def test_a_stop_before_the_first_step_keeps_nothing(run_attempt: RunAttempt, spec: JobSpec) -> None:
    attempt = run_attempt(spec, answers={("prepared", -1): "stop"})

    assert attempt.last == {
        "type": "stopped", "step": 0, "prefix": None, "manifest_sha256": None
    }  # fmt: skip


def test_a_stop_after_resuming_gives_the_checkpoint_back(
    run_attempt: RunAttempt, spec: JobSpec
) -> None:
    first = run_attempt(spec, answers={("step", 2): "stop"})

    second = run_attempt(
        spec, lease=2, resume_from=first.last["prefix"], answers={("prepared", -1): "stop"}
    )

    assert second.last == first.last


def test_a_stop_cuts_a_validation_short_and_it_is_made_up_for(
    run_attempt: RunAttempt, spec: JobSpec
) -> None:
    first = run_attempt(spec, answers={("step", 3): "stop"})
    assert [m["step"] for m in first.of_type("validation")] == [0]
    assert not first.of_type("checkpoint")
    assert first.last["step"] == 3

    second = run_attempt(spec, lease=2, resume_from=first.last["prefix"])

    assert [(m["type"], m.get("step")) for m in second.messages[:4]] == [
        ("prepared", None),
        ("validation", 3),
        ("checkpoint", 3),
        ("step", 4),
    ]


def test_an_abandoned_run_writes_nothing(
    run_attempt: RunAttempt, storage: LocalStorage, spec: JobSpec
) -> None:
    attempt = run_attempt(
        spec, answers={("step", 3): "abandon"}, checkpoint_interval_seconds=1000.0
    )

    assert attempt.last == {
        "type": "stopped", "step": 3, "prefix": None, "manifest_sha256": None
    }  # fmt: skip
    assert not attempt.of_type("checkpoint")


def test_the_adapter_leaves_the_trunk_however_the_run_ends(
    run_attempt: RunAttempt, spec: JobSpec, bases: WarmBases, tiny_base: BaseModelRef
) -> None:
    run_attempt(spec)
    run_attempt(spec, lease=2, answers={("step", 1): "abandon"})
    with pytest.raises(ZeroDivisionError):
        run_attempt(spec, lease=3, implementation=f"{FAILING}:Faulty")

    assert bases.get(tiny_base)[0].trunk.adapters == ()


@pytest.mark.parametrize(
    ("method", "code", "says"),
    [
        ("OutOfMemory", "out_of_memory", "smaller batch_size or max_length"),
        ("Faulty", "training_failed", "ZeroDivisionError: a defect"),
        ("Diverging", "non_finite_loss", "not finite"),
    ],
)
def test_failures_are_told_in_words(
    run_attempt: RunAttempt, spec: JobSpec, method: str, code: str, says: str
) -> None:
    attempt = Attempt()
    with pytest.raises(Exception, match=r"\S") as error:
        run_attempt(spec, implementation=f"{FAILING}:{method}", attempt=attempt)

    failure = explain(error.value)

    assert failure.code == code
    assert says in failure.message
    assert not attempt.of_type("step")


def test_a_rate_at_which_the_loss_overflows_is_named(
    run_attempt: RunAttempt, storage: LocalStorage
) -> None:
    file = put_records(storage, "train", SHORT_CHATS)
    spec = job_spec(file, learning_rate=1e30, num_epochs=5)

    with pytest.raises(TrainingFailed, match=r"of step \d+ is not finite, at a learning rate") as e:
        run_attempt(spec)

    assert (e.value.code, e.value.param) == ("non_finite_loss", "learning_rate_multiplier")


def test_a_full_disk_is_told(run_attempt: RunAttempt) -> None:
    assert explain(StorageFull()).code == "storage_full"


def test_content_that_changed_or_is_gone_is_refused(run_attempt: RunAttempt, spec: JobSpec) -> None:
    stored = spec.training_file
    for file in (replace(stored, sha256="0" * 64), replace(stored, storage_key="files/gone")):
        with pytest.raises(TrainingFailed) as error:
            run_attempt(replace(spec, training_file=file))
        assert (error.value.code, error.value.param) == ("invalid_training_file", "training_file")


def test_a_validation_file_is_named_when_it_is_at_fault(
    run_attempt: RunAttempt, storage: LocalStorage, spec: JobSpec
) -> None:
    bad = put_records(storage, "bad", [{"messages": []}])

    with pytest.raises(TrainingFailed, match="line 1") as error:
        run_attempt(replace(spec, validation_file=bad))

    assert error.value.param == "validation_file"


def test_a_target_that_the_base_model_lacks_is_refused(
    run_attempt: RunAttempt, spec: JobSpec
) -> None:
    spec = replace(
        spec,
        adapter=AdapterSpec.of_lora(LoraSpec(r=2, alpha=2, target_modules=("q_proj", "c_attn"))),
    )

    with pytest.raises(InvalidInput, match="no linear layer named c_attn"):
        run_attempt(spec)
