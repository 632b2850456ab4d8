"""Scores over the wire; a fake engine answers as vLLM does."""

from typing import Any

import httpx
import pytest
from openai import OpenAI

from app.api.schemas.scores import ScoreList
from tests.conftest import INSTALLATIONS
from tests.support.factories import BASE_MODEL
from tests.support.fake_engine import ENCODER, FakeEngine
from tests.support.wire import error_of, strict

# No database has a part in it.
pytestmark = pytest.mark.parametrize("api", INSTALLATIONS[:1], indirect=True, scope="session")


def test_pairs_are_scored(http: httpx.Client, fake_engine: FakeEngine) -> None:
    fake_engine.requests.clear()
    body = {"model": ENCODER, "text_1": "a", "text_2": ["b", "c"]}
    answer = strict(http.post("/v1/score", json=body), ScoreList)
    assert [(one.index, one.score) for one in answer.data] == [(0, 0.25), (1, 0.25)]
    assert fake_engine.requests == [body]


def test_the_client_can_ask_for_scores(client: OpenAI) -> None:
    body = {"model": ENCODER, "text_1": "a", "text_2": "b"}
    answer: Any = client.post("/score", cast_to=object, body=body)
    assert [one["score"] for one in answer["data"]] == [0.25]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"text_1": []}, "text_1"),
        ({"text_2": None}, "text_2"),
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ({"tunesmith": {"labels": "a"}}, "tunesmith.labels"),
        ({"model": BASE_MODEL}, "model"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_name(
    http: httpx.Client, fields: dict[str, Any], param: str
) -> None:
    body = {"model": ENCODER, "text_1": "a", "text_2": "b", **fields}
    assert error_of(http.post("/v1/score", json=body), 400)["param"] == param
