import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from app.api.errors import STATUS, response_of
from app.api.schemas.inference import CreateChatCompletionRequest, CreateCompletionRequest
from app.api.schemas.job_requests import CreateFineTuningJobRequest
from app.api.schemas.predictions import CreateEmbeddingRequest
from app.api.schemas.response_requests import CreateResponseRequest
from app.api.wrong_fields import explain_validation
from app.domain import errors
from app.domain.errors import DomainError

Explanation = tuple[str, str | None, str | None]

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, DomainError) and kind is not DomainError
]
# Raised and met in the worker only.
NEVER_IN_A_REQUEST = {errors.ExportFailed, errors.LeaseLost, errors.TrainingFailed}

EXPECTED_STATUS = {
    errors.InvalidInput: 400,
    errors.InvalidFile: 400,
    errors.UnknownName: 400,
    # Not 409: OpenAI's client would repeat the request.
    errors.Conflict: 400,
    errors.InvalidTransition: 400,
    errors.FileInUse: 400,
    errors.ModelInUse: 400,
    errors.Unauthenticated: 401,
    errors.NotFound: 404,
    errors.RequestInFlight: 409,
    errors.IdempotencyKeyReused: 422,
    errors.TooLarge: 413,
    errors.TooManyRequests: 429,
    errors.Unavailable: 503,
    errors.EngineUnavailable: 503,
    errors.DatabaseUnavailable: 503,
    errors.ModelDamaged: 500,
    errors.StorageFull: 503,
}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in NEVER_IN_A_REQUEST])
def test_every_domain_error_has_a_status(kind: type[DomainError]) -> None:
    assert any(parent in STATUS for parent in kind.__mro__ if parent is not DomainError)
    assert response_of(kind()).status_code == EXPECTED_STATUS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_the_envelope_has_all_four_keys(kind: type[DomainError]) -> None:
    body = json.loads(bytes(response_of(kind("why", param="seed", code="word")).body))
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert (body["error"]["message"], body["error"]["param"]) == ("why", "seed")
    assert body["error"]["code"] == "word"


def test_absent_parts_of_an_error_are_null() -> None:
    body = json.loads(bytes(response_of(errors.InvalidInput("why")).body))
    assert body["error"]["param"] is None


@pytest.mark.parametrize(
    "kind",
    [errors.RequestInFlight, errors.TooManyRequests, errors.Unavailable, errors.StorageFull],
)
def test_what_passes_says_when_to_try_again(kind: type[DomainError]) -> None:
    assert int(response_of(kind()).headers["Retry-After"]) > 0


def test_what_would_only_come_again_is_not_repeated() -> None:
    assert response_of(errors.ModelDamaged()).headers["x-should-retry"] == "false"


USER = {"role": "user", "content": "hello"}
JOB = {"model": "m", "training_file": "file-1"}
CHAT = {"model": "m", "messages": [USER]}


def with_hyperparameters(**hyperparameters: Any) -> dict[str, Any]:
    method = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
    return JOB | {"method": method}


def with_message(*messages: Any) -> dict[str, Any]:
    return CHAT | {"messages": list(messages)}


HYPERPARAMETERS = "method.supervised.hyperparameters"

JOB_MISTAKES: dict[str, tuple[Any, str, tuple[str, ...]]] = {
    "nothing": ({}, "model", ("Missing required field 'model'",)),
    "not_an_object": ([], "body", ("JSON object",)),
    "training_file_number": (JOB | {"training_file": 3}, "training_file", ("string", "3")),
    "training_file_null": (JOB | {"training_file": None}, "training_file", ("string",)),
    "epochs_text": (
        with_hyperparameters(n_epochs="three"),
        f"{HYPERPARAMETERS}.n_epochs",
        ("'auto'", "integer", "'three'"),
    ),
    "epochs_huge": (
        with_hyperparameters(n_epochs=1_000),
        f"{HYPERPARAMETERS}.n_epochs",
        ("'auto'", "less than or equal to 50", "1000"),
    ),
    "rate_text": (
        with_hyperparameters(learning_rate_multiplier="fast"),
        f"{HYPERPARAMETERS}.learning_rate_multiplier",
        ("'auto'", "number", "'fast'"),
    ),
    "hyperparameter_unknown": (
        with_hyperparameters(epochs=3),
        f"{HYPERPARAMETERS}.epochs",
        ("known here are batch_size, learning_rate_multiplier, n_epochs.",),
    ),
    "method_unknown": (JOB | {"method": {"type": "x"}}, "method.type", ("'supervised'", "'x'")),
    "method_without_type": (JOB | {"method": {}}, "method.type", ("Missing",)),
    "method_text": (JOB | {"method": "supervised"}, "method", ("'supervised'",)),
    "unknown_field": (
        JOB | {"modle": "m"},
        "modle",
        ("Unknown field 'modle': known here are model, training_file, validation_file, ",),
    ),
    "method_field_unknown": (
        JOB | {"method": {"type": "supervised", "hyperparameters": {}}},
        "method.hyperparameters",
        ("known here are type, supervised.",),
    ),
    "training_field_unknown": (
        JOB | {"tunesmith": {"training": {"warmup": 0.1}}},
        "tunesmith.training.warmup",
        # Too many to be told whole: the close ones first.
        ("known here are warmup_ratio, ", ", …"),
    ),
    "adapter_option_unknown": (
        JOB | {"tunesmith": {"adapter": {"type": "ia3", "r": 4}}},
        "tunesmith.adapter.r",
        ("known here are target_modules, type.",),
    ),
    "typo_for_a_required_field": (
        {"modle": "m", "training_file": "file-1"},
        "modle",
        ("Unknown field 'modle'",),
    ),
    "metadata_number": (JOB | {"metadata": {"a": 1}}, "metadata.a", ("string", "1")),
    "metadata_many": (
        JOB | {"metadata": {str(number): "" for number in range(17)}},
        "metadata",
        ("at most 16",),
    ),
    "suffix_with_space": (JOB | {"suffix": "a b"}, "suffix", ("pattern", "'a b'")),
    "suffix_empty": (JOB | {"suffix": ""}, "suffix", ("at least 1 character",)),
    "seed_negative": (JOB | {"seed": -1}, "seed", ("greater than or equal to 0", "-1")),
    "seed_huge": (JOB | {"seed": 2**31}, "seed", ("2147483647",)),
    "seed_text": (JOB | {"seed": "1"}, "seed", ("integer", "'1'")),
    "hyperparameters_twice": (
        with_hyperparameters() | {"hyperparameters": {}},
        "body",
        ("'hyperparameters' or 'method'",),
    ),
    "extension_module": (
        JOB | {"tunesmith": {"adapter": {"target_modules": ["q_proj", "../x"]}}},
        "tunesmith.adapter.target_modules[1]",
        ("pattern", "'../x'"),
    ),
    "extension_choice": (
        JOB | {"tunesmith": {"training": {"scheduler": "step"}}},
        "tunesmith.training.scheduler",
        ("'linear'", "'cosine'", "'constant'", "'step'"),
    ),
    "extension_unknown": (JOB | {"tunesmith": {"x": 1}}, "tunesmith.x", ("Unknown field",)),
    "integrations": (
        JOB | {"integrations": []},
        "integrations",
        ("'integrations' is not supported here.",),
    ),
}

CHAT_MISTAKES: dict[str, tuple[Any, str, tuple[str, ...]]] = {
    "no_messages": ({"model": "m"}, "messages", ("Missing",)),
    "messages_empty": (with_message(), "messages", ("at least 1",)),
    "messages_text": (CHAT | {"messages": "hi"}, "messages", ("list", "'hi'")),
    "role_unknown": (
        with_message(USER, {"role": "bot", "content": "x"}),
        "messages[1].role",
        ("'assistant'", "'bot'"),
    ),
    "role_missing": (with_message({"content": "x"}), "messages[0].role", ("Missing", "role")),
    "content_missing": (with_message({"role": "user"}), "messages[0].content", ("Missing",)),
    "part_without_text": (
        with_message(USER | {"content": [{"type": "text"}]}),
        "messages[0].content[0].text",
        ("Missing",),
    ),
    "second_stop": (CHAT | {"stop": ["a", 3]}, "stop[1]", ("a valid string, found 3",)),
    "two_fields": (
        {"model": ["a"], "messages": [{"role": "bot"}]},
        "model",
        ("a valid string, found ['a']",),
    ),
    "content_number": (with_message(USER | {"content": 3}), "messages[0].content", ("string",)),
    "message_field_unknown": (
        with_message(USER | {"x": 1}),
        "messages[0].x",
        ("Unknown field 'messages[0].x': known here are ", "content"),
    ),
    "temperature_high": (CHAT | {"temperature": 3}, "temperature", ("to 2", "3")),
    "n_huge": (CHAT | {"n": 10**6}, "n", ("less than or equal to 16", "1000000")),
    "n_zero": (CHAT | {"n": 0}, "n", ("greater than or equal to 1",)),
    "five_stops": (CHAT | {"stop": ["a"] * 5}, "stop", ("string", "at most 4")),
    "unknown_form": (
        CHAT | {"response_format": {"type": "xml"}},
        "response_format.type",
        ("'text'", "'json_object'", "'xml'"),
    ),
    "extra_beside_its_member": (
        CHAT
        | {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": {}},
                "strict": True,
            }
        },
        "response_format.strict",
        ("Unknown field 'response_format.strict': known here are type, json_schema.",),
    ),
    "unknown_choice": (CHAT | {"tool_choice": "always"}, "tool_choice", ("'none'", "'auto'")),
    "reasoning": (
        CHAT | {"reasoning_effort": "low"},
        "reasoning_effort",
        ("'reasoning_effort' is not supported here.",),
    ),
}

RESPONSE_MISTAKES: dict[str, tuple[Any, str, tuple[str, ...]]] = {
    "extra_of_item": (
        {"model": "m", "input": [{"role": "user", "content": "hello", "x": 1}]},
        "input[0].x",
        ("known here are type, role, content, id, status.",),
    ),
    "memory": (
        {"model": "m", "input": "a", "previous_response_id": "resp_1"},
        "previous_response_id",
        ("'previous_response_id' is not supported here.",),
    ),
    "extra_of_call": (
        {
            "model": "m",
            "input": [
                {"type": "function_call", "call_id": "1", "name": "f", "arguments": "", "x": 1}
            ],
        },
        "input[0].x",
        ("known here are type, call_id, name, arguments, id, status.",),
    ),
}

PROMPT_MISTAKES: dict[str, tuple[Any, str, tuple[str, ...]]] = {
    "no_prompt": ({"model": "m"}, "prompt", ("Missing",)),
    "number": ({"model": "m", "prompt": 3}, "prompt", ("string", "list", "3")),
    "best_of": (
        {"model": "m", "prompt": "a", "best_of": 2},
        "best_of",
        ("'best_of' is not supported here.",),
    ),
    "mixed": (
        {"model": "m", "prompt": ["a", 3]},
        "prompt[1]",
        ("expected a valid string, found 3",),
    ),
    "mixed_ids": (
        {"model": "m", "prompt": [5, "a"]},
        "prompt[1]",
        ("expected a valid integer, found 'a'",),
    ),
    "mixed_lists": (
        {"model": "m", "prompt": [[5], [6, "a"]]},
        "prompt[1][1]",
        ("expected a valid integer, found 'a'",),
    ),
    "empty_inside": (
        {"model": "m", "prompt": [[5], []]},
        "prompt[1]",
        ("a list to have at least 1 item",),
    ),
    "null": (
        {"model": "m", "prompt": [None]},
        "prompt[0]",
        ("expected a valid integer or a valid string or a valid list, found None",),
    ),
    "many": ({"model": "m", "prompt": ["a"] * 65}, "prompt", ("at most 64 items",)),
    "empty_list": ({"model": "m", "prompt": []}, "prompt", ("string", "at least 1")),
}


EMBEDDING_MISTAKES: dict[str, tuple[Any, str, tuple[str, ...]]] = {
    "number": ({"model": "m", "input": ["a", 3]}, "input[1]", ("a valid string, found 3",)),
    "ids": ({"model": "m", "input": [5, 6]}, "input[0]", ("a valid string, found 5",)),
    "empty": ({"model": "m", "input": ["a", ""]}, "input[1]", ("at least 1 character, found ''",)),
    "no_list": ({"model": "m", "input": 3}, "input", ("a valid string or a valid list",)),
}


def code_of(message: str) -> str:
    """Return the code that belongs to what people are told."""
    if "is not supported here" in message:
        return "unsupported_parameter"
    if message.startswith("Unknown field"):
        return "unknown_field"
    return "missing_required_field" if message.startswith("Missing") else "invalid_value"


def explanation_of(model: type[BaseModel], body: Any) -> Explanation:
    with pytest.raises(ValidationError) as refused:
        model.model_validate(body)
    found = [error | {"loc": ("body", *error["loc"])} for error in refused.value.errors()]
    return explain_validation(found, body, model)


@pytest.mark.parametrize(
    ("model", "body", "param", "told"),
    [
        pytest.param(model, *mistake, id=f"{prefix}-{name}")
        for prefix, model, mistakes in (
            ("job", CreateFineTuningJobRequest, JOB_MISTAKES),
            ("chat", CreateChatCompletionRequest, CHAT_MISTAKES),
            ("completion", CreateCompletionRequest, PROMPT_MISTAKES),
            ("response", CreateResponseRequest, RESPONSE_MISTAKES),
            ("embedding", CreateEmbeddingRequest, EMBEDDING_MISTAKES),
        )
        for name, mistake in mistakes.items()
    ],
)
def test_a_mistake_is_explained_by_field_and_expectation(
    model: type[BaseModel], body: Any, param: str, told: tuple[str, ...]
) -> None:
    message, explained_param, code = explanation_of(model, body)
    assert explained_param == param
    assert code == code_of(message)
    for words in told:
        assert words in message


@pytest.mark.parametrize(
    "body",
    [
        JOB | {"training_file": ["x" * 100_000]},
        JOB | {"x" * 100_000: 1},
        JOB | {"metadata": {"x" * 100_000: "a"}},
        JOB | {"method": {"type": "x" * 100_000}},
        JOB | {"metadata": {str(number): "a" for number in range(10_000)}},
    ],
    ids=["value", "unknown_field", "metadata_key", "choice", "many_keys"],
)
def test_an_explanation_shows_little_of_what_was_sent(body: Any) -> None:
    message, param, _ = explanation_of(CreateFineTuningJobRequest, body)
    assert len(message) <= 600
    assert len(param or "") <= 300


def test_a_query_parameter_is_named_without_its_place() -> None:
    found = [{"type": "int_parsing", "loc": ("query", "limit"), "msg": "x", "input": "many"}]
    assert explain_validation(found, None)[1] == "limit"


def test_broken_json_is_told_with_its_reason() -> None:
    reason = {"error": "Expecting value"}
    found = [{"type": "json_invalid", "loc": ("body", 1), "msg": "JSON error", "ctx": reason}]
    message, param, code = explain_validation(found, "{")
    assert "not valid JSON: Expecting value" in message
    assert (param, code) == (None, "invalid_json")
