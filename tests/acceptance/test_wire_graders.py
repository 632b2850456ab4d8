"""Graders over the wire, through OpenAI's own client; a fake engine is the grading model."""

import json
import secrets
from typing import Any

import httpx
import pytest
from openai import BadRequestError, InternalServerError, OpenAI, RateLimitError
from openai.types.fine_tuning.alpha import GraderRunResponse, GraderValidateResponse

from tests.support.factories import BASE_MODEL
from tests.support.fake_engine import ANSWER, DIE, REFUSE, SAY, SLOW, FakeEngine
from tests.support.service import Service, serve_adapter
from tests.support.wire import error_of, strict

RUN = "/v1/fine_tuning/alpha/graders/run"
VALIDATE = "/v1/fine_tuning/alpha/graders/validate"

STRING: dict[str, Any] = {
    "type": "string_check",
    "name": "answer",
    "input": "{{sample.output_text}}",
    "reference": "{{item.reference_answer}}",
    "operation": "ilike",
}
SIMILAR: dict[str, Any] = {
    "type": "text_similarity",
    "name": "near",
    "input": "{{sample.output_text}}",
    "reference": "{{item.reference_answer}}",
    "evaluation_metric": "fuzzy_match",
}
PYTHON: dict[str, Any] = {"type": "python", "name": "p", "source": "def grade(sample, item): ..."}

NO_ERRORS = {
    "formula_parse_error": False,
    "sample_parse_error": False,
    "truncated_observation_error": False,
    "unresponsive_reward_error": False,
    "invalid_variable_error": False,
    "other_error": False,
    "python_grader_server_error": False,
    "python_grader_server_error_type": None,
    "python_grader_runtime_error": False,
    "python_grader_runtime_error_details": None,
    "model_grader_server_error": False,
    "model_grader_refusal_error": False,
    "model_grader_parse_error": False,
    "model_grader_server_error_details": None,
}


@pytest.fixture(autouse=True)
def quiet_engine(fake_engine: FakeEngine) -> None:
    fake_engine.disconnected.clear()
    fake_engine.requests.clear()


def judge(prompt: str, model: str = BASE_MODEL) -> dict[str, Any]:
    """A grader whose model is told what to do by its prompt."""
    messages = [{"role": "user", "content": prompt}]
    return {"type": "score_model", "name": "judge", "model": model, "input": messages}


def multi(formula: str, **graders: dict[str, Any]) -> Any:
    return {"type": "multi", "name": "all", "graders": graders, "calculate_output": formula}


def run(client: OpenAI, grader: Any, sample: str = "It is 42.", **item: Any) -> GraderRunResponse:
    graders = client.fine_tuning.alpha.graders.with_raw_response
    answer = graders.run(grader=grader, model_sample=sample, item=item)
    return strict(answer, GraderRunResponse)


SAYS_7 = f'{SAY}{{"result": 0.7}}'


@pytest.mark.parametrize(
    "grader", [STRING, SIMILAR, judge("hello")], ids=lambda grader: str(grader["type"])
)
def test_a_valid_grader_is_handed_back(client: OpenAI, grader: Any) -> None:
    answer = client.fine_tuning.alpha.graders.with_raw_response.validate(grader=grader)
    strict(answer, GraderValidateResponse)
    assert json.loads(answer.content) == {"grader": grader}


def test_graders_by_name_are_handed_back(client: OpenAI) -> None:
    grader = multi("a + b", a=STRING, b=SIMILAR)
    answer = client.fine_tuning.alpha.graders.with_raw_response.validate(grader=grader)
    # Not by the client's type: it says one grader where OpenAI's guide has an object of several.
    assert json.loads(answer.content) == {"grader": grader}


def test_a_sample_is_graded(client: OpenAI) -> None:
    graders = client.fine_tuning.alpha.graders.with_raw_response
    answer = graders.run(grader=STRING, model_sample="It is 42.", item={"reference_answer": "42"})
    assert strict(answer, GraderRunResponse).reward == 1
    body = json.loads(answer.content)
    assert body["metadata"].pop("execution_time") >= 0
    assert body == {
        "reward": 1,
        "sub_rewards": {},
        "metadata": {
            "errors": NO_ERRORS,
            "name": "answer",
            "sampled_model_name": None,
            "scores": {},
            "token_usage": None,
            "type": "string_check",
        },
        "model_grader_token_usage_per_model": {},
        "tunesmith": {"errors": []},
    }


@pytest.mark.parametrize("metric", ["fuzzy_match", "bleu", "gleu", "rouge_2", "rouge_l"])
def test_the_api_has_the_libraries_of_every_metric(client: OpenAI, metric: str) -> None:
    grader = SIMILAR | {"evaluation_metric": metric}
    text = "the parcel has not arrived"
    assert run(client, grader, text, reference_answer=text).reward == 1


def test_a_model_grades(client: OpenAI, fake_engine: FakeEngine) -> None:
    grader = judge(SAYS_7) | {
        "sampling_params": {"temperature": 0, "seed": 7, "max_completions_tokens": 9}
    }
    graded = run(client, grader)
    assert graded.reward == 0.7
    assert graded.metadata.sampled_model_name == BASE_MODEL
    assert graded.metadata.token_usage == 9 + len(ANSWER)
    assert graded.api_model_grader_token_usage_per_model == {
        BASE_MODEL: {
            "prompt_tokens": 9,
            "completion_tokens": len(ANSWER),
            "total_tokens": 9 + len(ANSWER),
            "prompt_tokens_details": None,
        }
    }
    (asked,) = fake_engine.requests
    message = asked.pop("messages")[0]
    assert asked == {
        "model": BASE_MODEL,
        "temperature": 0,
        "seed": 7,
        "max_completion_tokens": 9,
    }
    assert message["content"].startswith(SAYS_7)


def test_a_fine_tuned_model_grades(
    api: Service, key: str, client: OpenAI, fake_engine: FakeEngine
) -> None:
    tuned = serve_adapter(api, key).name
    assert run(client, judge(SAYS_7, model=tuned)).reward == 0.7
    assert fake_engine.requests[0]["model"] == tuned


def test_the_variables_of_a_sample_reach_the_model(client: OpenAI) -> None:
    grader = judge("{{item.instruction}}{{sample.output_json.score}}")
    assert run(client, grader, '{"score": 0.25}', instruction=SAY).reward == 0.25


def test_several_graders_make_one_reward(client: OpenAI) -> None:
    grader = multi("0.5 * a + 0.5 * b", a=STRING, b=judge(SAYS_7))
    graded = run(client, grader, reference_answer="42")
    assert graded.reward == pytest.approx(0.85)
    assert graded.sub_rewards == {"a": 1, "b": 0.7}
    assert (graded.metadata.name, graded.metadata.type) == ("all", "multi")


def test_an_answer_that_is_no_score_is_told(client: OpenAI) -> None:
    graded = run(client, judge("hello"))
    assert graded.reward == 0
    assert graded.metadata.errors.model_dump(by_alias=True) == NO_ERRORS | {
        "model_grader_parse_error": True
    }


def test_a_variable_without_value_is_named(client: OpenAI) -> None:
    graded = run(client, multi("1 - a", a=STRING))
    assert (graded.reward, graded.sub_rewards) == (0, {"a": None})
    assert graded.metadata.errors.invalid_variable_error
    extension: Any = (graded.model_extra or {})["tunesmith"]
    assert extension == {
        "errors": [
            {
                "grader": "a",
                "code": "invalid_variable_error",
                "message": "no value for {{item.reference_answer}}",
            }
        ]
    }


def test_a_prompt_that_the_engine_refuses_is_told(client: OpenAI) -> None:
    graded = run(client, judge(f"{REFUSE}400"))
    assert graded.reward == 0
    assert graded.metadata.errors.api_model_grader_server_error
    assert graded.metadata.errors.api_model_grader_server_error_details == "refused with 400"


@pytest.mark.parametrize("prompt", [f"{REFUSE}500", DIE], ids=["failure", "death"])
def test_a_failure_of_the_engine_is_not_the_callers(client: OpenAI, prompt: str) -> None:
    with pytest.raises(InternalServerError) as failed:
        run(client.with_options(max_retries=0), judge(prompt))
    assert (failed.value.status_code, failed.value.code) == (503, "engine_unavailable")


def test_a_full_queue_says_when_to_come_again(client: OpenAI) -> None:
    with pytest.raises(RateLimitError) as refused:
        run(client.with_options(max_retries=0), judge(f"{REFUSE}429"))
    assert int(refused.value.response.headers["retry-after"]) > 0


def test_a_client_that_leaves_stops_the_grading_model(
    http: httpx.Client, fake_engine: FakeEngine
) -> None:
    with pytest.raises(httpx.ReadTimeout):
        http.post(RUN, json={"grader": judge(SLOW), "model_sample": ""}, timeout=0.4)
    assert fake_engine.disconnected.wait(10)


@pytest.mark.parametrize("route", [RUN, VALIDATE])
@pytest.mark.parametrize(
    ("grader", "param", "code"),
    [
        (PYTHON, "grader.type", "grader_not_enabled"),
        (multi("a", a=PYTHON), "grader.graders.a.type", "grader_not_enabled"),
        (STRING | {"operation": "regex"}, "grader.operation", "invalid_value"),
        (STRING | {"weight": 1}, "grader.weight", "unknown_field"),
        (
            multi("a", a=STRING | {"operation": "regex"}),
            "grader.graders.a.operation",
            "invalid_value",
        ),
        (multi("a + b", a=STRING), "grader.calculate_output", "invalid_value"),
        (STRING | {"input": "{{sample.input}}"}, "grader.input", "invalid_value"),
        (SIMILAR | {"evaluation_metric": "cosine"}, "grader.evaluation_metric", None),
        (judge("hello", model="gpt-4o"), "grader.model", "model_not_found"),
        (multi("a", a=judge("x", model="ft:x:y::z")), "grader.graders.a.model", None),
        ({"type": "exact", "name": "a"}, "grader.type", "invalid_value"),
        ({"name": "a"}, "grader.type", "missing_required_field"),
    ],
)
def test_what_is_wrong_with_a_grader_is_named(
    http: httpx.Client,
    fake_engine: FakeEngine,
    route: str,
    grader: Any,
    param: str,
    code: str | None,
) -> None:
    body = {"grader": grader} | ({"model_sample": ""} if route == RUN else {})
    error = error_of(http.post(route, json=body), 400)
    assert error["param"] == param
    assert code in (None, error["code"])
    assert fake_engine.requests == []


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({}, "model_sample"),
        ({"model_sample": 1}, "model_sample"),
        ({"model_sample": "", "item": []}, "item"),
        ({"model_sample": "", "reference": ""}, "reference"),
    ],
)
def test_what_is_wrong_with_a_run_is_named(
    http: httpx.Client, more: dict[str, Any], param: str
) -> None:
    assert error_of(http.post(RUN, json={"grader": STRING} | more), 400)["param"] == param


def test_another_projects_model_does_not_grade(api: Service, key: str, client: OpenAI) -> None:
    others = serve_adapter(api, api.new_key(project=secrets.token_hex(4))).name
    with pytest.raises(BadRequestError) as refused:
        run(client, judge(SAYS_7, model=others))
    assert refused.value.code == "model_not_found"


@pytest.mark.parametrize("route", [RUN, VALIDATE])
def test_a_repetition_gets_the_first_answer_again(
    http: httpx.Client, fake_engine: FakeEngine, route: str
) -> None:
    name = {"Idempotency-Key": f"grade-{secrets.token_hex(4)}"}
    body = {"grader": judge(SAYS_7)} | ({"model_sample": ""} if route == RUN else {})
    first, second = (http.post(route, json=body, headers=name) for _ in range(2))
    assert first.status_code == 200
    assert second.content == first.content
    assert second.headers["idempotent-replayed"] == "true"
    assert len(fake_engine.requests) == (1 if route == RUN else 0)
    other = http.post(route, json=body | {"grader": STRING}, headers=name)
    assert error_of(other, 422)["code"] == "idempotency_key_reused"


@pytest.mark.parametrize("route", [RUN, VALIDATE])
def test_a_key_is_needed(anonymous: httpx.Client, route: str) -> None:
    error_of(anonymous.post(route, json={"grader": STRING, "model_sample": ""}), 401)


def test_half_of_a_character_and_an_item_of_great_depth_crash_nothing(http: httpx.Client) -> None:
    half = b'{"grader": %b, "model_sample": "\\ud83d", "item": {"reference_answer": "x"}}'
    answer = http.post(
        RUN,
        content=half % json.dumps(STRING).encode(),
        headers={"content-type": "application/json"},
    )
    assert answer.status_code in (200, 400)
    deep = b'{"grader": %b, "model_sample": "", "item": {"reference_answer": %b}}' % (
        json.dumps(STRING).encode(),
        b"[" * 2_000 + b"]" * 2_000,
    )
    answer = http.post(RUN, content=deep, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400)
