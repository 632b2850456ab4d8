"""Learning from preferences and feedback: whole runs on a tiny model."""

import math
from dataclasses import replace
from typing import Any, get_args

import pytest

from app.domain.errors import TrainingFailed
from app.domain.job_spec import AdapterRef, DatasetRef, JobSpec, LoraSpec
from app.domain.methods.dpo import LossType
from app.storage.local import LocalStorage
from tests.training.conftest import RunAttempt, job_spec, put_records, random_adapter
from tests.training.methods.conftest import (
    FEEDBACK,
    PREFERENCES,
    assert_same_gradients,
    encode,
    gradients,
    on_trunk,
    with_options,
)
from tests.training.test_checkpoints import files_below
from worker.training.losses.preference import LOSS_TYPES
from worker.training.methods.dpo import Dpo
from worker.training.session import Session
from worker.training.step import trunk_step
from worker.trunk.trunk import Trunk

DPO = "worker.training.methods.dpo:Dpo"
UNUSED = DatasetRef("unused", "unused", "0" * 64, 0)
REWARDS = ("reward_chosen", "reward_rejected", "reward_margin")
PAIR_METRICS = {*REWARDS, "reward_accuracy"}


def spec_of(storage: LocalStorage, records: Any = PREFERENCES, **options: Any) -> JobSpec:
    """Return a run of six steps over records that are judged on, too."""
    file = put_records(storage, "train", records)
    spec = job_spec(file, file, num_epochs=3, batch_size=3, learning_rate=0.01)
    return with_options(spec, **options)


def test_both_sides_know_the_same_losses() -> None:
    assert set(get_args(LossType)) == set(LOSS_TYPES)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_packing_changes_nothing(tiny_trunk: Trunk, loss_type: str) -> None:
    shape = LoraSpec(r=2, alpha=4)
    adapter = random_adapter(tiny_trunk, shape, 1)
    spec = job_spec(UNUSED, batch_size=len(PREFERENCES), adapter=shape)
    spec = with_options(spec, loss_type=loss_type, beta=0.5)
    method = Dpo(spec)
    dataset = encode(tiny_trunk, method, PREFERENCES)
    session = Session(spec, method, adapter, dataset, tiny_trunk.device)

    with on_trunk(tiny_trunk, session):
        (whole,) = trunk_step(tiny_trunk, [session], 10_000)
        expected = gradients(adapter)
        (packed,) = trunk_step(tiny_trunk, [session], 60)

    assert len(session.next_batch(60)) >= 3
    assert packed.loss == pytest.approx(whole.loss, rel=1e-5)
    assert packed.metrics == pytest.approx(whole.metrics, rel=1e-4, abs=1e-6)
    assert_same_gradients(gradients(adapter), expected, 1e-5)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_every_loss_learns_what_is_preferred(
    run_attempt: RunAttempt, storage: LocalStorage, loss_type: str
) -> None:
    spec = spec_of(storage, loss_type=loss_type, beta=1.0)
    attempt = run_attempt(spec, implementation=DPO)

    steps, validations = attempt.of_type("step"), attempt.of_type("validation")
    names = set(REWARDS) if loss_type == "kto" else PAIR_METRICS
    assert all(f"train_{name}" in step for step in steps for name in names)
    assert validations[-1]["valid_loss"] < validations[0]["valid_loss"]
    assert validations[-1]["valid_reward_margin"] > validations[0]["valid_reward_margin"] + 1e-4
    last = validations[-1]
    assert last["valid_reward_margin"] == pytest.approx(
        last["valid_reward_chosen"] - last["valid_reward_rejected"], abs=1e-6
    )
    assert "train_reward_margin" in attempt.last["metrics_csv"]


def test_the_report_has_the_accuracy_with_its_interval(
    run_attempt: RunAttempt, storage: LocalStorage
) -> None:
    # By means over tokens: of a random model the longer answer would always be the unlikelier.
    spec = spec_of(storage, PREFERENCES * 2, loss_type="simpo", beta=2.0)
    chosen = replace(spec.hyperparameters, learning_rate=0.05, batch_size=5)
    attempt = run_attempt(replace(spec, hyperparameters=chosen), implementation=DPO)

    metrics = attempt.last["report"]["metrics"]
    assert {"loss", "perplexity", "token_accuracy", "preference_accuracy"} == set(metrics)
    accuracy = metrics["preference_accuracy"]
    assert accuracy["tuned"] > accuracy["base"]


def test_feedback_is_for_kto(run_attempt: RunAttempt, storage: LocalStorage) -> None:
    attempt = run_attempt(spec_of(storage, FEEDBACK, loss_type="kto"), implementation=DPO)

    validations = attempt.of_type("validation")
    assert validations[-1]["valid_reward_margin"] > validations[0]["valid_reward_margin"]
    assert "valid_kl" in validations[-1]
    assert "preference_accuracy" not in attempt.last["report"]["metrics"]
    with pytest.raises(TrainingFailed, match="compares two answers") as error:
        run_attempt(spec_of(storage, FEEDBACK), implementation=DPO)
    assert error.value.param == "training_file"


def test_the_reference_is_what_the_run_starts_from(
    run_attempt: RunAttempt, storage: LocalStorage, tiny_trunk: Trunk
) -> None:
    spec = spec_of(storage)
    first = run_attempt(replace(spec, job_id="first"), implementation=DPO)
    assert abs(first.of_type("step")[-1]["train_reward_margin"]) > 1e-3

    start = AdapterRef("ft:first", f"{first.last['prefix']}/adapter")
    second = run_attempt(replace(spec, start_from=start), implementation=DPO)

    # Before its first step the policy is the reference: no answer has any reward.
    before, step = second.of_type("validation")[0], second.of_type("step")[0]
    assert before["valid_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert before["valid_reward_chosen"] == pytest.approx(0, abs=1e-6)
    assert step["train_loss"] == pytest.approx(math.log(2), abs=1e-6)
    # And afterwards the reference has stayed where it was.
    assert second.of_type("validation")[-1]["valid_reward_margin"] > 1e-3
    assert tiny_trunk.adapters == ()


@pytest.mark.parametrize("loss_type", ["sigmoid", "kto"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    run_attempt: RunAttempt, storage: LocalStorage, loss_type: str
) -> None:
    spec = spec_of(storage, loss_type=loss_type)
    begun = run_attempt(replace(spec, job_id="first"), implementation=DPO)
    spec = replace(spec, start_from=AdapterRef("ft:first", f"{begun.last['prefix']}/adapter"))
    whole = run_attempt(spec, implementation=DPO)
    first = run_attempt(spec, lease=2, answers={("step", 3): "stop"}, implementation=DPO)

    second = run_attempt(spec, lease=3, resume_from=first.last["prefix"], implementation=DPO)

    assert second.of_type("prepared")[0]["start_step"] == 3
    assert files_below(storage.directory(second.last["prefix"])) == files_below(
        storage.directory(whole.last["prefix"])
    )
    assert second.last["metrics_csv"] == whole.last["metrics_csv"]
