"""What each method takes beyond the hyperparameters of all, and what it refuses, with the field."""

from typing import Any

import pytest
from pydantic import ValidationError

from app.domain.errors import InvalidInput
from app.domain.job_spec import AdapterSpec
from app.domain.methods import METHODS, Circumstances, resolve_hyperparameters
from app.domain.methods.dpo import DpoHyperparameters, DpoMethodSettings
from app.domain.methods.reinforcement import (
    ReinforcementHyperparameters,
    ReinforcementMethodSettings,
)

GRADER = {
    "type": "string_check",
    "name": "word",
    "input": "{{sample.output_text}}",
    "reference": "{{item.word}}",
    "operation": "ilike",
}
JUDGE = {
    "type": "score_model",
    "name": "judge",
    "model": "smollm2-135m-instruct",
    "input": [{"role": "user", "content": "{{sample.output_text}}"}],
}


def circumstances(**changes: Any) -> Circumstances:
    given: dict[str, Any] = {
        "record_kinds": {"training_file": "preference"},
        "base_model": "smollm2-135m-instruct",
        "adapter": AdapterSpec(),
        "max_length_tokens": 512,
    }
    return Circumstances(**(given | changes))


def refused(method: str, settings: dict[str, Any], **changes: Any) -> InvalidInput:
    checked = METHODS[method].settings.model_validate(settings)
    with pytest.raises(InvalidInput) as error:
        checked.check(circumstances(**changes), f"method.{method}")
    return error.value


def test_auto_beta_is_resolved_with_its_reason() -> None:
    found = {one.name: one for one in resolve_hyperparameters(DpoHyperparameters(), 100)}
    assert (found["beta"].value, found["learning_rate_multiplier"].value) == (0.1, 0.1)
    assert all(one.reason for one in found.values())
    simpo = DpoHyperparameters(loss_type="simpo")
    assert {one.name: one.value for one in resolve_hyperparameters(simpo, 100)}["beta"] == 2.0
    asked = resolve_hyperparameters(DpoHyperparameters(beta=0.5), 100)
    assert [(one.value, one.reason) for one in asked if one.name == "beta"] == [(0.5, None)]


@pytest.mark.parametrize("record_count", [1, 7, 40, 500, 100_000])
def test_whatever_auto_becomes_could_have_been_asked_for(record_count: int) -> None:
    for model in (DpoHyperparameters, ReinforcementHyperparameters):
        found = resolve_hyperparameters(model(), record_count)
        model.model_validate({one.name: one.value for one in found})


@pytest.mark.parametrize("beta", [0, -0.1, 2.1, float("nan"), "strong", True])
def test_beta_has_openais_bounds(beta: Any) -> None:
    with pytest.raises(ValidationError, match="beta"):
        DpoHyperparameters(beta=beta)


@pytest.mark.parametrize(
    ("hyperparameters", "name"),
    [
        ({"gamma": 0.5}, "gamma"),
        ({"loss_type": "kto", "label_smoothing": 0.1}, "label_smoothing"),
        ({"loss_type": "simpo", "desirable_weight": 2.0}, "desirable_weight"),
        ({"undesirable_weight": 2.0}, "undesirable_weight"),
    ],
)
def test_what_a_loss_would_ignore_is_refused(hyperparameters: dict[str, Any], name: str) -> None:
    error = refused("dpo", {"hyperparameters": hyperparameters})
    assert error.param == f"method.dpo.hyperparameters.{name}"
    assert name in error.message


def test_single_answers_are_for_kto_alone() -> None:
    kinds = {"training_file": "preference", "validation_file": "feedback"}
    error = refused("dpo", {}, record_kinds=kinds)
    assert error.param == "method.dpo.hyperparameters.loss_type"
    assert "validation_file" in error.message
    kto = DpoMethodSettings(hyperparameters=DpoHyperparameters(loss_type="kto"))
    kto.check(circumstances(record_kinds=kinds), "method.dpo")


@pytest.mark.parametrize("method", ["dpo", "reinforcement"])
def test_label_smoothing_of_tokens_is_refused(method: str) -> None:
    settings = {"grader": GRADER} if method == "reinforcement" else {}
    error = refused(method, settings, training={"label_smoothing": 0.1})
    assert error.param == "tunesmith.training.label_smoothing"


def test_a_grader_is_checked_with_the_job() -> None:
    error = refused("reinforcement", {"grader": GRADER | {"reference": "{{thing.word}}"}})
    assert error.param == "method.reinforcement.grader.reference"
    error = refused("reinforcement", {"grader": {"type": "python", "name": "x", "source": "y"}})
    assert (error.param, error.code) == ("method.reinforcement.grader.type", "grader_not_enabled")


def test_a_grading_model_is_the_base_model() -> None:
    settings = ReinforcementMethodSettings.model_validate({"grader": JUDGE})
    settings.check(circumstances(), "method.reinforcement")
    error = refused("reinforcement", {"grader": JUDGE | {"model": "ft:mine"}})
    assert error.param == "method.reinforcement.grader.model"
    assert "'smollm2-135m-instruct'" in error.message


def test_answers_are_sampled_with_plain_lora_alone() -> None:
    error = refused("reinforcement", {"grader": GRADER}, adapter=AdapterSpec("ia3"))
    assert error.param == "tunesmith.adapter"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"grader": GRADER, "response_format": {"type": "json_object"}},
        {"grader": GRADER, "hyperparameters": {"reasoning_effort": "high"}},
        {"grader": GRADER, "hyperparameters": {"group_size": 1}},
        {"grader": GRADER, "hyperparameters": {"compute_multiplier": 11.0}},
        {"grader": GRADER, "hyperparameters": {"epsilon": 0.2}},
    ],
)
def test_what_reinforcement_does_not_have_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ReinforcementMethodSettings.model_validate(settings)


def test_openais_defaults_are_taken() -> None:
    settings = ReinforcementMethodSettings.model_validate(
        {
            "grader": GRADER,
            "response_format": {"type": "text"},
            "hyperparameters": {"reasoning_effort": "default", "compute_multiplier": 1},
        }
    )
    settings.check(circumstances(), "method.reinforcement")


def test_an_answer_must_leave_room_for_a_prompt() -> None:
    hyperparameters = {"max_completion_tokens": 512}
    settings = {"grader": GRADER, "hyperparameters": hyperparameters}
    error = refused("reinforcement", settings, max_length_tokens=512)
    assert error.param == "method.reinforcement.hyperparameters.max_completion_tokens"
    assert "512 leaves no room for a prompt" in error.message
    checked = METHODS["reinforcement"].settings.model_validate(settings)
    checked.check(circumstances(max_length_tokens=513), "method.reinforcement")
