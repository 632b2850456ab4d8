"""An ensemble of real models on the whole stack, an explanation of one, and what joining gains."""

import json
import secrets
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from openai import NotFoundError, OpenAI
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint

from tests.acceptance.test_predictions import labelled_texts
from tests.conftest import INSTALLATIONS
from tests.support.answers import ask
from tests.support.datasets import as_jsonl, movie_reviews
from tests.support.fake_engine import ENCODER
from tests.support.jobs import Run, create_job, wait_until_ended
from tests.support.service import Service
from tests.support.wire import error_of

# On one of both installations: what a task is does not depend on the database.
ON_ONE = pytest.mark.parametrize("stack", INSTALLATIONS[:1], indirect=True, scope="session")

ENSEMBLES = "/v1/ensembles"
PREDICTIONS = "/v1/predictions"
TEXTS = ["What a lovely evening!", "I have never been so bored.", "It has a colour."]


@pytest.fixture(scope="module")
def members(stack: Service, user: OpenAI) -> list[str]:
    """Two models of the same texts, which differ by their seed."""
    return train(user, labelled_texts(), seeds=(1, 2), n_epochs=1, batch_size=10)


def train(user: OpenAI, content: bytes, seeds: Sequence[int], **hyperparameters: Any) -> list[str]:
    jobs = [
        create_job(
            user,
            content=content,
            model=ENCODER,
            hyperparameters={"learning_rate_multiplier": 2, **hyperparameters},
            tunesmith={"task": "text-classification", "evaluation": {"holdout": 0}},
            seed=seed,
        )
        for seed in seeds
    ]
    names = []
    for job in jobs:
        ended = wait_until_ended(user, job)
        assert ended.status == "succeeded", ended.error
        assert ended.fine_tuned_model is not None
        names.append(ended.fine_tuned_model)
    return names


def join(http: httpx.Client, members: Sequence[str], **more: Any) -> dict[str, Any]:
    body = {"models": list(members), "method": "mean_probabilities"} | more
    answer = http.post(ENSEMBLES, json=body)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def probabilities(http: httpx.Client, model: str, texts: Sequence[str]) -> list[dict[str, float]]:
    body = {"model": model, "inputs": list(texts), "parameters": {"top_k": None}}
    answer = http.post(PREDICTIONS, json=body)
    assert answer.status_code == 200, answer.text
    return [
        {label["label"]: label["score"] for label in prediction}
        for prediction in answer.json()["predictions"]
    ]


@ON_ONE
def test_an_ensemble_answers_with_the_mean_of_its_members(
    stack: Service, members: list[str]
) -> None:
    with stack.http(stack.key) as http:
        made = join(http, members, weights=[1, 3])
        one, other, together = (
            probabilities(http, model, TEXTS) for model in (*members, made["model"])
        )
        for text in range(len(TEXTS)):
            expected = {
                label: 0.25 * score + 0.75 * other[text][label]
                for label, score in one[text].items()
            }
            assert together[text] == pytest.approx(expected, abs=1e-6)
            assert together[text] != pytest.approx(one[text], abs=1e-4)
        first = http.post(PREDICTIONS, json={"model": made["model"], "inputs": TEXTS[0]}).json()
        likeliest = max(together[0].items(), key=lambda pair: pair[1])
        (told,) = first["predictions"]
        assert [(entry["label"], entry["score"]) for entry in told] == [
            (likeliest[0], pytest.approx(likeliest[1], abs=1e-6))
        ]
        body = {"model": made["model"], "inputs": [TEXTS[0], 7]}
        assert error_of(http.post(PREDICTIONS, json=body), 400)["param"] == "inputs[1]"
    with stack.http(stack.new_key(project=secrets.token_hex(4))) as http:
        body = {"model": made["model"], "inputs": TEXTS}
        assert error_of(http.post(PREDICTIONS, json=body), 404)["code"] == "model_not_found"


@ON_ONE
def test_a_prediction_is_explained(stack: Service, members: list[str]) -> None:
    with stack.http(stack.key) as http:
        predicted = probabilities(http, members[0], TEXTS[:1])[0]
        answer = http.post("/v1/explanations", json={"model": members[0], "inputs": TEXTS[0]})
        assert answer.status_code == 200, answer.text
        (found,) = answer.json()["explanations"]
        assert found["score"] == pytest.approx(predicted[found["label"]], abs=1e-4)
        total = sum(token["attribution"] for token in found["attributions"])
        difference = found["score"] - found["baseline_score"]
        assert total - difference == pytest.approx(found["convergence_delta"], abs=1e-5)
        for token in found["attributions"]:
            part = TEXTS[0][token["start"] : token["end"]]
            assert part.lower() == token["token"].removeprefix("##")


@ON_ONE
def test_a_mean_of_adapters_generates_as_an_adapter_does(
    stack: Service, user: OpenAI, run: Run, checkpoints: list[FineTuningJobCheckpoint]
) -> None:
    first, last = checkpoints[-1].fine_tuned_model_checkpoint, run.model

    def joined(weights: list[float]) -> str:
        with stack.http(stack.key) as http:
            made = join(http, [first, last], method="mean_adapters", weights=weights)
        assert made["task"] == "text-generation"
        name: str = made["model"]
        return name

    def log_probability(model: str) -> float:
        answer = ask(user, model, logprobs=True, max_completion_tokens=1)
        assert answer.model == model
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.content
        return logprobs.content[0].logprob

    almost_first, half = joined([1, 1e-9]), joined([1, 1])
    of_first, of_last = log_probability(first), log_probability(last)
    assert log_probability(almost_first) == pytest.approx(of_first, abs=1e-3)
    assert log_probability(half) not in (of_first, of_last)
    with stack.http(stack.key) as http:
        body = {"model": half, "inputs": "hello"}
        error = error_of(http.post(PREDICTIONS, json=body), 400)
        assert "/v1/chat/completions" in error["message"]
        assert http.delete(f"/v1/models/{half}").status_code == 200
    with pytest.raises(NotFoundError):
        ask(user, half)


@pytest.mark.slow
@ON_ONE
def test_three_seeds_together_are_righter_than_each_on_average(
    stack: Service, user: OpenAI
) -> None:
    reviews = movie_reviews(1800)
    training, heldout = reviews[:1000], reviews[1000:]
    names = train(user, as_jsonl(training), seeds=(1, 2, 3), n_epochs=2, batch_size=16)
    with stack.http(stack.key) as http:
        names.append(join(http, names)["model"])
        accuracies = [accuracy(http, name, heldout) for name in names]
    *each, together = accuracies
    print(json.dumps({"members": each, "ensemble": together}))  # noqa: T201
    assert together > sum(each) / len(each)


def accuracy(http: httpx.Client, model: str, records: Sequence[dict[str, Any]]) -> float:
    right = 0
    for start in range(0, len(records), 200):
        batch = records[start : start + 200]
        found = probabilities(http, model, [record["text"] for record in batch])
        right += sum(
            max(one.items(), key=lambda pair: pair[1])[0] == record["label"]
            for one, record in zip(found, batch, strict=True)
        )
    return right / len(records)
