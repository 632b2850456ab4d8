"""Models beside text generation over the wire: predictions, embeddings, and what is refused."""

import csv
import io
import secrets
from typing import Any

import httpx
import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from openai.types import CreateEmbeddingResponse

from tests.conftest import INSTALLATIONS
from tests.support.factories import BASE_MODEL, add_adapter
from tests.support.fake_engine import ENCODER, REFUSE, SAY
from tests.support.jobs import create_job, wait_until_ended
from tests.support.service import Service
from tests.support.wire import error_of, strict

# On one of both installations: what a task is does not depend on the database.
ON_ONE = pytest.mark.parametrize("stack", INSTALLATIONS[:1], indirect=True, scope="session")

PREDICTIONS = "/v1/predictions"
GOOD = ("wonderful", "delightful", "excellent", "charming", "brilliant")
BAD = ("dreadful", "tedious", "terrible", "clumsy", "horrible")
THINGS = ("film", "play", "book", "concert", "meal", "hotel", "game", "walk", "show", "song")


@pytest.fixture
def tuned(api: Service, key: str) -> str:
    """The name of a fine-tuned classifier in the project of `key`."""
    name = f"ft:{ENCODER}:acme::{secrets.token_hex(6)}"
    with api.database() as database, database.write() as connection:
        add_adapter(connection, api.project_of(key), name, task="text-classification")
    return name


class TestWithoutAModel:
    """What the API decides, with a fake engine behind it."""

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({}, "inputs"),
            ({"inputs": None}, "inputs"),
            ({"inputs": []}, "inputs"),
            ({"inputs": ["a"] * 257}, "inputs"),
            ({"inputs": "a", "parameters": [1]}, "parameters"),
            ({"inputs": "a", "parameters": {"top_k": 0}}, "parameters.top_k"),
            ({"inputs": "a", "parameters": {"top_k": -1}}, "parameters.top_k"),
            ({"inputs": "a", "top_k": 1}, "top_k"),
            ({"inputs": "a", "model": ""}, "model"),
        ],
    )
    def test_a_wrong_field_is_named(
        self, http: httpx.Client, tuned: str, fields: dict[str, Any], param: str
    ) -> None:
        answer = http.post(PREDICTIONS, json={"model": tuned, **fields})
        assert error_of(answer, 400)["param"] == param

    def test_at_least_one_class_is_asked_for(self, http: httpx.Client, tuned: str) -> None:
        body = {"model": tuned, "inputs": "a", "parameters": {"top_k": 0}}
        told = error_of(http.post(PREDICTIONS, json=body), 400)
        assert told["message"] == "Invalid 'parameters.top_k': expected at least 1, found 0."

    def test_inputs_that_are_nested_without_end_are_told(self, http: httpx.Client) -> None:
        for depth, statuses in ((100, {200}), (400, {200, 400}), (5000, {400}), (200_000, {400})):
            body = f'{{"model": "{ENCODER}", "inputs": {"[" * depth}{"]" * depth}}}'
            headers = {"content-type": "application/json"}
            answer = http.post(PREDICTIONS, content=body, headers=headers)
            assert answer.status_code in statuses, (depth, answer.text)

    @pytest.mark.parametrize("field", ["input", "encoding_format", "dimensions", "model"])
    def test_a_wrong_field_of_embeddings_is_named(self, http: httpx.Client, field: str) -> None:
        body = {"model": ENCODER, "input": "hello", field: ["", "hello"]}
        assert error_of(http.post("/v1/embeddings", json=body), 400)["param"].startswith(field)

    def test_token_ids_are_refused(self, http: httpx.Client) -> None:
        body = {"model": ENCODER, "input": [[101, 102]]}
        assert "input" in error_of(http.post("/v1/embeddings", json=body), 400)["param"]

    def test_each_model_has_its_routes(self, http: httpx.Client, tuned: str) -> None:
        messages = [{"role": "user", "content": "hello"}]
        asked = [
            ("/v1/chat/completions", {"model": tuned, "messages": messages}, PREDICTIONS),
            ("/v1/chat/completions", {"model": ENCODER, "messages": messages}, "/v1/embeddings"),
            ("/v1/completions", {"model": tuned, "prompt": "hello"}, PREDICTIONS),
            ("/v1/embeddings", {"model": tuned, "input": "hello"}, PREDICTIONS),
            ("/v1/embeddings", {"model": BASE_MODEL, "input": "hello"}, "/v1/chat/completions"),
            (PREDICTIONS, {"model": BASE_MODEL, "inputs": "hello"}, "/v1/chat/completions"),
            (PREDICTIONS, {"model": "whisper-base", "inputs": "hello"}, "fine-tuned"),
        ]
        for route, body, told in asked:
            error = error_of(http.post(route, json=body), 400)
            assert told in error["message"]
            assert error["param"] == "model"

    def test_what_the_engine_refuses_is_told_with_its_field(
        self, api: Service, http: httpx.Client
    ) -> None:
        body = {"model": ENCODER, "inputs": [f"{REFUSE}400"]}
        assert error_of(http.post(PREDICTIONS, json=body), 400)["param"] == "seed"
        assert error_of(http.post(PREDICTIONS, json={**body, "inputs": f"{REFUSE}429"}), 429)

    def test_bodies_are_larger_than_those_of_chats(self, http: httpx.Client) -> None:
        body = {"model": ENCODER, "inputs": ["x" * (9 << 20)]}
        assert http.post(PREDICTIONS, json=body).status_code == 200
        body["inputs"] = ["x" * (33 << 20)]
        assert error_of(http.post(PREDICTIONS, json=body), 413)["code"] == "too_large"

    def test_the_same_key_gets_the_same_answer(self, http: httpx.Client) -> None:
        answers = [
            http.post(
                PREDICTIONS,
                json={"model": ENCODER, "inputs": f"{SAY}{word}"},
                headers={"idempotency-key": key},
            )
            for key, word in (("a", "one"), ("a", "one"), ("a", "two"), ("b", "one"))
        ]
        assert [answer.status_code for answer in answers] == [200, 200, 422, 200]
        assert answers[1].content == answers[0].content
        replayed = ["idempotent-replayed" in answer.headers for answer in answers]
        assert replayed == [False, True, False, False]


@pytest.fixture(scope="module")
def classifier(stack: Service, user: OpenAI) -> str:
    """A model of labelled texts, whose task nobody named."""
    job = create_job(
        user,
        content=labelled_texts(),
        model=ENCODER,
        hyperparameters={"n_epochs": 3, "batch_size": 10},
        tunesmith=None,
    )
    ended = wait_until_ended(user, job)
    assert ended.status == "succeeded", ended.error
    assert ended.fine_tuned_model is not None
    return ended.fine_tuned_model


def labelled_texts() -> bytes:
    """Return a hundred opinions as CSV."""
    file = io.StringIO()
    table = csv.writer(file)
    table.writerow(["text", "label"])
    for words, label in ((GOOD, "praise"), (BAD, "blame")):
        for word in words:
            for thing in THINGS:
                table.writerow([f"That was a {word} {thing}, I think.", label])
    return file.getvalue().encode()


@ON_ONE
def test_a_model_of_labelled_texts_predicts(stack: Service, classifier: str, user: OpenAI) -> None:
    texts = ["What a lovely evening!", "I have never been so bored.", "A superb little story."]
    with stack.http(stack.key) as http:
        body = {"model": classifier, "inputs": texts, "parameters": {"top_k": 2}}
        answer = http.post(PREDICTIONS, json=body)
        assert answer.status_code == 200, answer.text
        told = answer.json()
        assert told["id"].startswith("pred-")
        assert (told["object"], told["model"]) == ("prediction", classifier)
        assert told["task"] == "text-classification"
        assert [one[0]["label"] for one in told["predictions"]] == ["praise", "blame", "praise"]
        for one in told["predictions"]:
            assert sum(label["score"] for label in one) == pytest.approx(1, abs=1e-3)
        assert told["usage"]["inputs"] == 3
        assert told["usage"]["input_tokens"] > 15
        assert told["truncated_inputs"] == []

        pair = {"text": texts[0], "text_pair": texts[1]}
        alone = http.post(PREDICTIONS, json={"model": classifier, "inputs": pair}).json()
        assert len(alone["predictions"]) == 1
        cut = http.post(PREDICTIONS, json={"model": classifier, "inputs": "word " * 2000}).json()
        assert cut["truncated_inputs"] == [0]

        for fields, param in (
            ({"inputs": [texts[0], 7]}, "inputs[1]"),
            ({"inputs": {"words": "x"}}, "inputs"),
            ({"inputs": texts[0], "parameters": {"top_k": "all"}}, "parameters.top_k"),
            ({"inputs": texts[0], "parameters": {"temperature": 1}}, "parameters"),
        ):
            refused = http.post(PREDICTIONS, json={"model": classifier, **fields})
            assert error_of(refused, 400)["param"] == param

    with pytest.raises(BadRequestError, match=PREDICTIONS):
        user.chat.completions.create(
            model=classifier, messages=[{"role": "user", "content": "hello"}]
        )


@ON_ONE
def test_a_model_of_another_project_is_not_there(stack: Service, classifier: str) -> None:
    with stack.http(stack.new_key(project=secrets.token_hex(4))) as http:
        body = {"model": classifier, "inputs": "hello"}
        assert error_of(http.post(PREDICTIONS, json=body), 404)["code"] == "model_not_found"


@ON_ONE
def test_a_base_encoder_embeds(stack: Service, user: OpenAI) -> None:
    texts = ["The cat sleeps on the sofa.", "A kitten naps on a couch.", "Rates rose again."]
    raw = user.embeddings.with_raw_response.create(
        model=ENCODER, input=texts, encoding_format="float"
    )
    answer = strict(raw, CreateEmbeddingResponse)
    assert [one.index for one in answer.data] == [0, 1, 2]
    cat, kitten, rates = (one.embedding for one in answer.data)
    assert cosine(cat, cat) == pytest.approx(1, abs=1e-2)
    assert cosine(cat, kitten) > 0.5 > 0.3 > cosine(cat, rates)
    # As the client asks for them unless told otherwise: in base64.
    alone = user.embeddings.create(model=ENCODER, input=texts[0])
    assert alone.data[0].embedding == pytest.approx(cat, abs=2e-2)
    assert 0 < alone.usage.total_tokens < answer.usage.total_tokens
    with pytest.raises(BadRequestError, match="dimensions"):
        user.embeddings.create(model=ENCODER, input=texts, dimensions=7)
    with pytest.raises(NotFoundError):
        user.embeddings.create(model="ft:nothing:acme::x", input=texts)


def cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))
