"""The methods beside supervised learning, in the shapes that OpenAI's own client gives them."""

import json
from typing import Any

import pytest
from openai import BadRequestError, OpenAI
from openai.types.fine_tuning import (
    DpoHyperparametersParam,
    DpoMethodParam,
    FineTuningJob,
    ReinforcementHyperparametersParam,
    ReinforcementMethodParam,
)
from openai.types.graders import ScoreModelGraderParam, StringCheckGraderParam

from tests.conftest import INSTALLATIONS
from tests.support.answers import ask, text_of
from tests.support.factories import BASE_MODEL
from tests.support.jobs import SMALL, numbers_of, story_of, wait_until_ended

# On one of both installations: what a method is does not depend on the database.
ONE_INSTALLATION = pytest.mark.parametrize(
    "stack", INSTALLATIONS[:1], indirect=True, scope="session"
)

QUESTIONS = ["Is the red bike in stock?", "My brakes squeal.", "Refund, please!"]


def prompt(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]


PREFERENCES = [
    {
        "input": {"messages": prompt(question)},
        "preferred_output": [{"role": "assistant", "content": "Got it."}],
        "non_preferred_output": [{"role": "assistant", "content": "So what?"}],
    }
    for question in QUESTIONS
]
FEEDBACK = [
    {"prompt": question, "completion": " So what?", "label": False} for question in QUESTIONS
]
PROMPTS = [{"messages": prompt(question), "wanted": "got it"} for question in QUESTIONS]

GRADER: StringCheckGraderParam = {
    "type": "string_check",
    "name": "wanted",
    "input": "{{sample.output_text}}",
    "reference": "{{item.wanted}}",
    "operation": "ilike",
}


def upload(client: OpenAI, records: list[Any]) -> str:
    content = b"".join(json.dumps(record).encode() + b"\n" for record in records)
    return client.files.create(file=("records.jsonl", content), purpose="fine-tune").id


def create(client: OpenAI, records: list[Any], method: Any, **more: Any) -> FineTuningJob:
    return client.fine_tuning.jobs.create(
        model=BASE_MODEL,
        training_file=upload(client, records),
        method=method,
        extra_body={"tunesmith": SMALL},
        seed=7,
        **more,
    )


def dpo(**hyperparameters: Any) -> Any:
    chosen: DpoHyperparametersParam = {"beta": "auto", "n_epochs": 1, "batch_size": 3}
    method: DpoMethodParam = {"hyperparameters": {**chosen, **hyperparameters}}  # type: ignore[typeddict-item]
    return {"type": "dpo", "dpo": method}


def reinforcement(grader: Any = GRADER, **hyperparameters: Any) -> Any:
    chosen: ReinforcementHyperparametersParam = {
        "n_epochs": 1,
        "batch_size": 2,
        "compute_multiplier": "auto",
        "eval_interval": "auto",
        "eval_samples": 1,
        "reasoning_effort": "default",
    }
    method: ReinforcementMethodParam = {
        "grader": grader,
        "hyperparameters": {**chosen, **hyperparameters},  # type: ignore[typeddict-item]
    }
    return {"type": "reinforcement", "reinforcement": method}


@ONE_INSTALLATION
def test_a_model_learns_from_preferences(user: OpenAI) -> None:
    validation_file = upload(user, PREFERENCES[:1])
    job = create(user, PREFERENCES, dpo(), validation_file=validation_file)
    ended = wait_until_ended(user, job)

    assert ended.status == "succeeded", ended.error
    assert ended.method is not None
    assert ended.method.dpo is not None
    assert ended.method.dpo.hyperparameters is not None
    assert ended.method.dpo.hyperparameters.beta == 0.1
    story = story_of(user, job)
    assert any(event.message.startswith("beta = 0.1 (auto: ") for event in story)
    numbers = numbers_of(story)
    assert {"train_reward_accuracy", "train_reward_margin"} <= set().union(*numbers)
    margins = [one["valid_reward_margin"] for one in numbers if "valid_reward_margin" in one]
    assert margins[0] == 0
    assert margins[-1] > 0
    report = ended.to_dict()["tunesmith"]["report"]  # type: ignore[index]
    assert "preference_accuracy" in report["metrics"]
    assert text_of(ask(user, ended.fine_tuned_model or "", max_completion_tokens=2))


@ONE_INSTALLATION
def test_a_model_learns_from_rewards(user: OpenAI) -> None:
    method = reinforcement(group_size=2, max_completion_tokens=4)
    job = create(user, PROMPTS[:2], method, validation_file=upload(user, PROMPTS[2:]))
    ended = wait_until_ended(user, job)

    assert ended.status == "succeeded", ended.error
    assert ended.method is not None
    assert ended.method.reinforcement is not None
    assert ended.method.reinforcement.grader.to_dict() == GRADER
    hyperparameters = ended.method.reinforcement.hyperparameters
    assert hyperparameters is not None
    assert (hyperparameters.eval_interval, hyperparameters.compute_multiplier) == (1, 1.0)
    numbers = numbers_of(story_of(user, job))
    told = set().union(*numbers)
    assert {"train_reward_mean", "train_reward_std", "train_kl", "valid_reward"} <= told
    assert all(0 <= one["valid_reward"] <= 1 for one in numbers if "valid_reward" in one)
    report = ended.to_dict()["tunesmith"]["report"]  # type: ignore[index]
    assert set(report["metrics"]) == {"reward"}
    assert text_of(ask(user, ended.fine_tuned_model or "", max_completion_tokens=2))


def test_what_a_method_cannot_learn_is_refused_with_the_job(client: OpenAI) -> None:
    judge: ScoreModelGraderParam = {
        "type": "score_model",
        "name": "judge",
        "model": "another-model",
        "input": [{"role": "user", "content": "{{sample.output_text}}"}],
    }
    hyperparameters = "method.reinforcement.hyperparameters"
    for records, method, param in [
        (FEEDBACK, dpo(), "method.dpo.hyperparameters.loss_type"),
        (PREFERENCES, dpo(gamma=0.5), "method.dpo.hyperparameters.gamma"),
        (PREFERENCES, reinforcement(), "training_file"),
        (PROMPTS, dpo(), "training_file"),
        (PROMPTS, reinforcement(judge), "method.reinforcement.grader.model"),
        (PROMPTS, reinforcement(reasoning_effort="high"), f"{hyperparameters}.reasoning_effort"),
    ]:
        with pytest.raises(BadRequestError) as refused:
            create(client, records, method)
        assert refused.value.param == param, refused.value.message
    assert list(client.fine_tuning.jobs.list()) == []
