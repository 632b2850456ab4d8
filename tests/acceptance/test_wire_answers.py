"""Models and answers over the wire; a fake engine answers, so that errors can be had at will."""

import json
from typing import Any

import httpx
import pytest
from openai import (
    APIError,
    BadRequestError,
    InternalServerError,
    NotFoundError,
    OpenAI,
    RateLimitError,
)
from openai.types import Completion, Model, ModelDeleted
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage

from tests.support.factories import BASE_MODEL
from tests.support.fake_engine import (
    ANSWER,
    DIE,
    LATE,
    REFUSE,
    RETRY_AFTER,
    SLOW,
    UNLOADABLE,
    FakeEngine,
)
from tests.support.service import Service, serve_adapter
from tests.support.wire import error_of, strict, strict_list, strict_object

TEXT = "".join(ANSWER)


@pytest.fixture(autouse=True)
def quiet_engine(fake_engine: FakeEngine) -> None:
    fake_engine.disconnected.clear()
    fake_engine.requests.clear()


@pytest.fixture
def tuned(api: Service, key: str) -> str:
    """The name of a fine-tuned model of the project."""
    return serve_adapter(api, key).name


def hello(prompt: str = "hello") -> list[Any]:
    return [{"role": "user", "content": prompt}]


def events_of(answer: httpx.Response) -> list[bytes]:
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-request-id"].startswith("req_")
    lines = answer.content.split(b"\n\n")
    assert lines.pop() == b""
    return [line.removeprefix(b"data: ") for line in lines]


def test_models_are_the_operators_and_ones_own(client: OpenAI, tuned: str) -> None:
    listed = strict_list(client.models.with_raw_response.list(), Model, keys=set())
    owners = {model.id: model.owned_by for model in listed}
    assert listed[0].id == BASE_MODEL
    assert listed[-1].id == tuned
    assert owners.pop(tuned) == "acme"
    assert set(owners.values()) == {"operator"}


@pytest.mark.parametrize("which", ["base", "tuned"])
def test_a_model_is_retrieved(client: OpenAI, tuned: str, which: str) -> None:
    name = BASE_MODEL if which == "base" else tuned
    assert strict(client.models.with_raw_response.retrieve(name), Model).id == name


def test_a_fine_tuned_model_is_deleted_with_its_weights(
    api: Service, client: OpenAI, tuned: str, fake_engine: FakeEngine
) -> None:
    client.chat.completions.create(model=tuned, messages=hello())
    weights = set((api.data_dir / "storage").rglob("adapter_config.json"))
    deleted = strict(client.models.with_raw_response.delete(tuned), ModelDeleted)
    assert (deleted.id, deleted.deleted, deleted.object) == (tuned, True, "model")
    assert len(weights - set((api.data_dir / "storage").rglob("adapter_config.json"))) == 1
    assert tuned in fake_engine.unloads
    for use in (client.models.retrieve, client.models.delete):
        with pytest.raises(NotFoundError):
            use(tuned)
    with pytest.raises(NotFoundError):
        client.chat.completions.create(model=tuned, messages=hello())


def test_a_base_model_is_not_deleted(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as refused:
        client.models.delete(BASE_MODEL)
    assert refused.value.param == "model"
    assert client.models.retrieve(BASE_MODEL)


@pytest.mark.parametrize("name", ["gpt-4o-mini", "ft:x:y::z", "a/b", "ft:a/b:c::d"])
def test_a_model_that_is_not_there_is_not_found(client: OpenAI, name: str) -> None:
    with pytest.raises(NotFoundError) as missed:
        client.models.retrieve(name)
    assert (missed.value.param, missed.value.code) == ("model", "model_not_found")
    assert name in missed.value.message


def test_a_chat_is_answered(client: OpenAI) -> None:
    answer = client.chat.completions.with_raw_response.create(model=BASE_MODEL, messages=hello())
    chat = strict(answer, ChatCompletion)
    assert chat.choices[0].message.content == TEXT
    assert chat.model == BASE_MODEL


def test_a_text_is_continued(client: OpenAI) -> None:
    answer = client.completions.with_raw_response.create(model=BASE_MODEL, prompt="hello")
    assert strict(answer, Completion).choices[0].text == TEXT


def test_a_fine_tuned_model_answers_and_can_be_told_apart(
    api: Service, client: OpenAI, tuned: str, fake_engine: FakeEngine
) -> None:
    for _ in range(2):
        answer = client.chat.completions.create(model=tuned, messages=hello())
        assert answer.model == tuned
    # Once, or twice: the API also tells of new models before anybody asks.
    (directory,) = {directory for name, directory in fake_engine.loads if name == tuned}
    assert directory.startswith(str(api.data_dir / "storage"))


def test_a_chat_is_streamed(http: httpx.Client) -> None:
    body = {"model": BASE_MODEL, "messages": hello(), "stream": True}
    *pieces, end = events_of(http.post("/v1/chat/completions", json=body))
    chunks = [strict_object(piece, ChatCompletionChunk) for piece in pieces]
    assert end == b"[DONE]"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT


def test_a_streamed_chat_ends_with_its_usage_if_asked_for(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model=BASE_MODEL, messages=hello(), stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(ANSWER)


def test_a_text_is_streamed(client: OpenAI) -> None:
    stream = client.completions.create(model=BASE_MODEL, prompt="hello", stream=True)
    assert "".join(piece.choices[0].text for piece in stream) == TEXT


def test_what_was_asked_for_reaches_the_engine_and_nothing_else(
    client: OpenAI, fake_engine: FakeEngine
) -> None:
    asked: dict[str, Any] = {
        "temperature": 0,
        "top_p": 0.5,
        "n": 2,
        "stop": ["\n"],
        "seed": 7,
        "max_completion_tokens": 5,
        "logprobs": True,
        "top_logprobs": 3,
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "logit_bias": {"5": -100},
    }
    client.chat.completions.create(model=BASE_MODEL, messages=hello(), **asked)
    assert fake_engine.requests == [asked | {"model": BASE_MODEL, "messages": hello()}]


def test_what_is_not_supported_may_be_null(client: OpenAI, fake_engine: FakeEngine) -> None:
    nulls: dict[str, Any] = {"reasoning_effort": None, "verbosity": None, "audio": None}
    client.chat.completions.create(model=BASE_MODEL, messages=hello(), **nulls)
    assert fake_engine.requests == [{"model": BASE_MODEL, "messages": hello()}]


def test_an_answer_goes_on_as_the_client_dumps_it(client: OpenAI, fake_engine: FakeEngine) -> None:
    messages = hello()
    answer = client.chat.completions.create(model=BASE_MODEL, messages=messages)
    messages += [answer.choices[0].message.model_dump(), *hello("And then?")]
    client.chat.completions.create(model=BASE_MODEL, messages=messages)
    *_, asked = fake_engine.requests
    before = {"role": "assistant", "content": TEXT, "tool_calls": []}
    assert asked["messages"] == [*hello(), before, *hello("And then?")]


def test_a_call_goes_on_as_the_client_dumps_it(client: OpenAI, fake_engine: FakeEngine) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    message = ChatCompletionMessage.model_validate({"role": "assistant", "tool_calls": [call]})
    result = {"role": "tool", "tool_call_id": "c1", "content": "Rain."}
    messages: list[Any] = [*hello(), message.model_dump() | {"annotations": []}, result]
    client.chat.completions.create(model=BASE_MODEL, messages=messages)
    (asked,) = fake_engine.requests
    assert asked["messages"] == [*hello(), {"role": "assistant", "tool_calls": [call]}, result]


@pytest.mark.parametrize(
    "said",
    [
        {"annotations": [{"type": "url_citation"}]},
        {"audio": {"id": "audio_1"}},
        {"function_call": {"name": "f", "arguments": "{}"}},
        {"modle": None},
    ],
)
def test_history_that_says_what_is_not_here_is_refused_by_name(
    http: httpx.Client, said: dict[str, Any]
) -> None:
    messages = [*hello(), {"role": "assistant", "content": TEXT, **said}]
    answer = http.post("/v1/chat/completions", json={"model": BASE_MODEL, "messages": messages})
    (name,) = said
    assert error_of(answer, 400)["param"] == f"messages[1].{name}"


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "streamed"])
class TestErrorsOfTheEngine:
    def ask(self, client: OpenAI, prompt: str, is_stream: bool, model: str = BASE_MODEL) -> Any:
        answer = client.chat.completions.create(
            model=model, messages=hello(prompt), stream=is_stream
        )
        return list(answer) if is_stream else answer

    def test_a_refused_field_is_named(self, client: OpenAI, is_stream: bool) -> None:
        with pytest.raises(BadRequestError) as refused:
            self.ask(client, f"{REFUSE}400", is_stream)
        assert refused.value.param == "seed"
        assert refused.value.body is not None

    def test_a_full_queue_says_when_to_come_again(self, client: OpenAI, is_stream: bool) -> None:
        with pytest.raises(RateLimitError) as refused:
            self.ask(client, f"{REFUSE}429", is_stream)
        assert refused.value.response.headers["retry-after"] == RETRY_AFTER
        assert refused.value.type == "rate_limit_error"

    def test_a_failure_is_not_the_callers(self, client: OpenAI, is_stream: bool) -> None:
        with pytest.raises(InternalServerError) as failed:
            self.ask(client, f"{REFUSE}500", is_stream)
        assert failed.value.status_code == 503
        assert failed.value.code == "engine_unavailable"

    def test_a_death_in_the_middle_is_told(self, client: OpenAI, is_stream: bool) -> None:
        with pytest.raises(APIError, match="middle of the answer") as failed:
            self.ask(client, DIE, is_stream)
        assert failed.value.code == "engine_unavailable"

    def test_an_absent_model_is_not_found(self, client: OpenAI, is_stream: bool) -> None:
        with pytest.raises(NotFoundError) as missed:
            self.ask(client, "hello", is_stream, model="gpt-4o-mini")
        assert missed.value.code == "model_not_found"

    def test_weights_that_cannot_be_loaded_are_not_the_callers_mistake(
        self, api: Service, key: str, client: OpenAI, is_stream: bool
    ) -> None:
        suffix = "streamed" if is_stream else "whole"
        name = serve_adapter(api, key, f"{UNLOADABLE}-{suffix}-{key[6:12]}").name
        with pytest.raises(InternalServerError) as failed:
            self.ask(client, "hello", is_stream, model=name)
        assert failed.value.status_code == 503
        assert str(api.data_dir) not in failed.value.message

    @pytest.mark.parametrize("prompt", [SLOW, LATE], ids=["in_the_middle", "before_the_first"])
    def test_a_client_that_leaves_stops_its_answer(
        self, http: httpx.Client, fake_engine: FakeEngine, is_stream: bool, prompt: str
    ) -> None:
        body = {"model": BASE_MODEL, "messages": hello(prompt), "stream": is_stream}
        with pytest.raises(httpx.ReadTimeout):
            http.post("/v1/chat/completions", json=body, timeout=0.4)
        assert fake_engine.disconnected.wait(10)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": BASE_MODEL}, "messages"),
        ({"model": BASE_MODEL, "messages": []}, "messages"),
        ({"model": BASE_MODEL, "messages": hello(), "n": 10**9}, "n"),
        ({"model": BASE_MODEL, "messages": hello(), "temperature": 5}, "temperature"),
        ({"model": BASE_MODEL, "messages": hello(), "reasoning_effort": "low"}, "reasoning_effort"),
        ({"messages": hello()}, "model"),
    ],
)
def test_a_bad_request_does_not_reach_the_engine(
    http: httpx.Client, fake_engine: FakeEngine, body: dict[str, Any], param: str
) -> None:
    answer = http.post("/v1/chat/completions", json=body)
    assert error_of(answer, 400)["param"] == param
    assert fake_engine.requests == []


def test_chunks_arrive_as_they_are_made(http: httpx.Client) -> None:
    body = {"model": BASE_MODEL, "messages": hello(SLOW), "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        # The engine has said one word and will never say another.
        line = next(answer.iter_lines())
    assert json.loads(line.removeprefix("data: "))["choices"][0]["delta"]["content"] == ANSWER[0]
