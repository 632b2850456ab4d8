"""Aliases of real models, which answer by a real engine."""

from collections import Counter
from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.conftest import INSTALLATIONS
from tests.support.factories import BASE_MODEL
from tests.support.jobs import Run
from tests.support.polling import eventually
from tests.support.service import Service

pytestmark = pytest.mark.parametrize("stack", INSTALLATIONS[:1], indirect=True, scope="session")

HELLO: list[Any] = [{"role": "user", "content": "My parcel has not arrived. What now?"}]


def test_an_alias_shares_out_counts_and_compares(stack: Service, user: OpenAI, run: Run) -> None:
    with stack.http(stack.key) as http:
        targets = [{"model": model, "weight": 1} for model in (BASE_MODEL, run.model)]
        shadow = {"model": run.model, "share": 1}
        body = {"name": "desk", "targets": targets, "shadow": shadow}
        assert http.post("/v1/aliases", json=body).status_code == 200
        requests: Counter[str] = Counter()
        tokens: Counter[str] = Counter()
        for number in range(8):
            asked: dict[str, Any] = {
                "model": "desk",
                "messages": HELLO,
                "max_completion_tokens": 4 + number,
                "user": f"customer-{number}",
                "temperature": 0,
            }
            answer = user.chat.completions.create(**asked)
            *_, last = chunks = list(user.chat.completions.create(**asked, stream=True))
            # The same user has the same version.
            assert {chunk.model for chunk in chunks} == {answer.model}
            ends = {answer.choices[0].finish_reason, last.choices[0].finish_reason}
            assert ends == {"length"}
            requests[answer.model] += 2
            tokens[answer.model] += 2 * (4 + number)
        assert set(requests) == {BASE_MODEL, run.model}
        report = eventually(lambda: _complete(http, 16), what="everything is counted")
        assert {one["model"]: one["requests"] for one in report["versions"]} == requests
        assert {one["model"]: one["completion_tokens"] for one in report["versions"]} == tokens
        # Whoever answers itself is not compared with itself.
        eventually(
            lambda: _shadowed(http) == requests[BASE_MODEL],
            what="the shadow was asked for what the base model answered",
        )
        assert http.delete("/v1/aliases/desk").status_code == 200


def _complete(http: httpx.Client, requests: int) -> Any:
    report = http.get("/v1/aliases/desk/report").json()
    counted = sum(one["requests"] for one in report["versions"])
    return report if counted == requests else None


def _shadowed(http: httpx.Client) -> int:
    shadow = http.get("/v1/aliases/desk/report").json()["shadow"]
    return int(shadow["compared"] + shadow["dropped"])
