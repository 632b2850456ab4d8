"""Each kind of grader on samples, with a model that answers what the test says."""

from collections.abc import Callable
from typing import Any

import pytest

from app.domain.errors import EngineUnavailable, InvalidInput
from app.domain.graders import (
    GRADERS,
    Completion,
    GradeResult,
    ModelPrompt,
    Sampling,
    TokenUsage,
    grade,
    grading,
    parse_grader,
)
from app.domain.graders.text_similarity import METRICS

Json = dict[str, Any]

STRING = {
    "type": "string_check",
    "name": "answer",
    "input": "{{sample.output_text}}",
    "reference": "{{item.reference}}",
    "operation": "eq",
}
SCORE = {
    "type": "score_model",
    "name": "judge",
    "model": "base",
    "input": [{"role": "user", "content": "Rate {{sample.output_text}}"}],
}
LABEL = SCORE | {
    "type": "label_model",
    "name": "tone",
    "labels": ["kind", "rude"],
    "passing_labels": ["kind"],
}
MULTI = {
    "type": "multi",
    "name": "both",
    "graders": {"answer": STRING, "judge": SCORE},
    "calculate_output": "0.5 * answer + 0.5 * judge",
}


class Judge:
    """A model that says one thing, and remembers what it was asked."""

    def __init__(self, text: str = "", refusal: str | None = None) -> None:
        self.completion = Completion(text, refusal, prompt_tokens=7, completion_tokens=3)
        self.prompts: list[ModelPrompt] = []

    def __call__(self, prompt: ModelPrompt) -> Completion:
        self.prompts.append(prompt)
        return self.completion


def graded(
    wire: Json,
    sample: str = "",
    item: Json | None = None,
    complete: Callable[[ModelPrompt], Completion] | None = None,
) -> GradeResult:
    return grade(parse_grader(wire), sample, item or {}, complete=complete or Judge())


def kinds_of(result: GradeResult) -> list[str]:
    return [error.kind for error in result.errors]


@pytest.mark.parametrize(
    ("operation", "sample", "reference", "reward"),
    [
        ("eq", "Paris", "Paris", 1),
        ("eq", "paris", "Paris", 0),
        ("eq", "Paris ", "Paris", 0),
        ("ne", "Paris", "Rome", 1),
        ("ne", "Paris", "Paris", 0),
        ("like", "It is Paris.", "Paris", 1),
        ("like", "It is paris.", "Paris", 0),
        ("ilike", "It is PARIS.", "paris", 1),
        ("ilike", "Rome", "paris", 0),
        ("ilike", "STRASSE", "Straße", 1),
    ],
)
def test_string_check(operation: str, sample: str, reference: str, reward: float) -> None:
    result = graded(STRING | {"operation": operation}, sample, {"reference": reference})
    assert result == GradeResult(reward, {}, (), {})


def similarity(metric: str, text: str, reference: str) -> GradeResult:
    wire = STRING | {"type": "text_similarity", "evaluation_metric": metric}
    del wire["operation"]
    return graded(wire, text, {"reference": reference})


THE_CAT = "the cat sat on the mat"
A_CAT = "the cat sat on a mat"


@pytest.mark.parametrize(
    ("metric", "reward"),
    [
        ("fuzzy_match", 0.9048),  # 19 of 20 and of 22 characters stay: 38 / 42.
        ("bleu", 0.5373),
        ("gleu", 0.6111),  # 11 of 18 runs of one to four words.
        ("rouge_1", 0.8333),
        ("rouge_2", 0.6),
        ("rouge_3", 0.5),
        ("rouge_4", 0.3333),
        ("rouge_5", 0.0),
        ("rouge_l", 0.8333),
    ],
)
def test_text_similarity(metric: str, reward: float) -> None:
    assert similarity(metric, A_CAT, THE_CAT).reward == pytest.approx(reward, abs=1e-4)


@pytest.mark.parametrize("metric", METRICS)
def test_what_is_the_same_is_1_and_what_has_nothing_in_common_0(metric: str) -> None:
    assert similarity(metric, THE_CAT, THE_CAT).reward == 1
    assert similarity(metric, "", THE_CAT).reward == 0
    assert similarity(metric, "zzz", THE_CAT).reward == 0
    assert similarity(metric, THE_CAT, "").errors == ()


@pytest.mark.parametrize("metric", METRICS)
def test_texts_that_are_too_long_are_an_error(metric: str) -> None:
    result = similarity(metric, "a" * 50_001, THE_CAT)
    assert (result.reward, kinds_of(result)) == (0, ["truncated_observation_error"])


def test_words_that_are_too_many_for_a_table_are_an_error() -> None:
    assert kinds_of(similarity("rouge_l", "a " * 2_001, THE_CAT)) == ["truncated_observation_error"]


@pytest.mark.parametrize("metric", [name for name in METRICS if name.startswith("rouge")])
def test_a_script_that_rouge_does_not_know_is_not_a_reward_of_0(metric: str) -> None:
    result = similarity(metric, "Вёрстка", "Вёрстка")
    assert kinds_of(result) == ["other_error"]


@pytest.mark.parametrize("metric", ["cosine", "meteor"])
def test_a_metric_that_is_not_here_is_refused_with_the_reason(metric: str) -> None:
    with pytest.raises(InvalidInput, match=f"'{metric}' is not supported: it needs") as refused:
        similarity(metric, "a", "b")
    assert refused.value.param == "grader.evaluation_metric"
    assert refused.value.code == "metric_not_supported"


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("0.5", 0.5),
        (" 1\n", 1),
        ('"0.25"', 0.25),
        ('{"result": 0.75}', 0.75),
        ('{"steps": [{"result": 0}], "result": "0.5"}', 0.5),
        ('{"score": 1}', 1),
        ('{"result": 1.5}', 1),
        ('{"result": -1}', 0),
        ('```json\n{"result": 0.5}\n```', 0.5),
        ('I would say {it is} {"why": "good"} {"result": 0.5}.', 0.5),
        ('<think>{"result": 0} or {"result": 1}?</think>{"result": 0.5}', 0.5),
    ],
)
def test_a_score_is_read_from_the_models_answer(answer: str, reward: float) -> None:
    result = graded(SCORE, complete=Judge(answer))
    assert result == GradeResult(reward, {}, (), {"base": TokenUsage(7, 3)})


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "good",
        "7 of 10",
        "true",
        "null",
        "[1]",
        "{}",
        '{"result": true}',
        '{"result": null}',
        '{"result": [1]}',
        '{"result": "good"}',
        '{"result": NaN}',
        '{"result": ' + "9" * 400 + "}",
        '{"result": 1',
        '{"a":' * 4_000,
        "{" * 20_000,
        "x" * 30_000 + '{"result": 1}',
    ],
)
def test_an_answer_that_is_no_score_is_an_error_and_no_crash(answer: str) -> None:
    result = graded(SCORE, complete=Judge(answer))
    assert (result.reward, kinds_of(result)) == (0, ["model_grader_parse_error"])
    assert len(result.errors[0].message) < 300
    assert result.token_usage["base"].total_tokens == 10


def test_the_range_is_the_graders_own() -> None:
    assert graded(SCORE | {"range": [1, 7]}, complete=Judge("7")).reward == 7
    assert graded(SCORE | {"range": [1, 7]}, complete=Judge("0.5")).reward == 1


def test_what_the_model_is_asked() -> None:
    judge = Judge("1")
    content = [{"type": "input_text", "text": "Is {{sample.output_text}} "}, "{{item.it}}?"]
    wire = SCORE | {
        "input": [
            {"role": "developer", "content": {"type": "output_text", "text": "Be strict."}},
            {"type": "message", "role": "user", "content": content},
        ],
        "sampling_params": {"temperature": 0, "seed": 7, "max_completions_tokens": 5},
    }
    graded(wire, "4", {"it": "right"}, judge)
    (prompt,) = judge.prompts
    assert prompt.model == "base"
    assert prompt.messages == (
        {"role": "developer", "content": "Be strict."},
        {
            "role": "user",
            "content": "Is 4 right?\n\n"
            'Answer with a JSON object {"result": <a number from 0 to 1>}.',
        },
    )
    assert prompt.sampling == Sampling(temperature=0, seed=7, max_completion_tokens=5)


def test_the_form_is_a_message_of_its_own_after_an_assistants() -> None:
    judge = Judge("1")
    graded(SCORE | {"input": [{"role": "assistant", "content": "It is 4."}]}, complete=judge)
    assert [message["role"] for message in judge.prompts[0].messages] == ["assistant", "user"]


def test_a_refusal_is_told() -> None:
    result = graded(SCORE, complete=Judge("", refusal="I would rather not."))
    assert kinds_of(result) == ["model_grader_refusal_error"]
    assert "rather not" in result.errors[0].message


def test_a_prompt_that_the_model_cannot_take_is_an_error_of_this_sample() -> None:
    def complete(prompt: ModelPrompt) -> Completion:
        raise InvalidInput("longer than the context")

    result = graded(SCORE, complete=complete)
    assert kinds_of(result) == ["model_grader_server_error"]
    assert result.errors[0].message == "longer than the context"
    assert result.token_usage == {}


def test_a_model_that_is_away_is_nobodys_score() -> None:
    def complete(prompt: ModelPrompt) -> Completion:
        raise EngineUnavailable

    with pytest.raises(EngineUnavailable):
        graded(MULTI, "4", {"reference": "4"}, complete)


def alone(wire: Json, formula: str = "part") -> Json:
    return MULTI | {"graders": {"part": wire}, "calculate_output": formula}


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("kind", 1),
        (" rude ", 0),
        ('{"result": "kind"}', 1),
        ('{"label": "rude"}', 0),
        ('"kind"', 1),
    ],
)
def test_a_label_is_read_from_the_models_answer(answer: str, reward: float) -> None:
    result = graded(alone(LABEL), complete=Judge(answer))
    assert (result.reward, result.errors) == (reward, ())


@pytest.mark.parametrize("answer", ["friendly", '{"result": 1}', '{"result": ["kind"]}', "KIND"])
def test_an_answer_that_is_no_label_is_an_error(answer: str) -> None:
    assert kinds_of(graded(alone(LABEL), complete=Judge(answer))) == ["model_grader_parse_error"]


def test_a_multi_computes_from_its_parts() -> None:
    result = graded(MULTI, "4", {"reference": "4"}, Judge("0.5"))
    assert result.reward == 0.75
    assert result.sub_rewards == {"answer": 1, "judge": 0.5}
    assert result.errors == ()
    assert result.token_usage == {"base": TokenUsage(7, 3)}


def test_tokens_are_counted_for_each_model() -> None:
    graders = {"a": SCORE, "b": SCORE, "c": SCORE | {"model": "other"}}
    result = graded(
        MULTI | {"graders": graders, "calculate_output": "a * b * c"}, complete=Judge("1")
    )
    assert result.token_usage == {"base": TokenUsage(14, 6), "other": TokenUsage(7, 3)}


def test_a_part_that_fails_is_no_reward_even_where_the_formula_turns_it_round() -> None:
    result = graded(alone(SCORE, "1 - part"), complete=Judge("none"))
    assert result.reward == 0
    assert result.sub_rewards == {"part": None}
    assert [(error.grader, error.kind) for error in result.errors] == [
        ("part", "model_grader_parse_error")
    ]


def test_every_part_that_fails_is_told() -> None:
    result = graded(MULTI, "4", {}, Judge("none"))
    assert [(error.grader, error.kind) for error in result.errors] == [
        ("answer", "invalid_variable_error"),
        ("judge", "model_grader_parse_error"),
    ]
    assert "{{item.reference}}" in result.errors[0].message


def test_a_formula_without_a_result_is_told() -> None:
    result = graded(alone(STRING, "1 / part"), "4", {"reference": "5"})
    assert (result.reward, kinds_of(result)) == (0, ["formula_parse_error"])
    assert result.sub_rewards == {"part": 0}


def test_a_single_grader_may_stand_for_an_object_of_one() -> None:
    wire = MULTI | {"graders": STRING, "calculate_output": "1 - answer"}
    assert graded(wire, "4", {"reference": "4"}).sub_rewards == {"answer": 1}


def test_the_example_of_openais_guide() -> None:
    near = {
        "name": "name_grader",
        "type": "text_similarity",
        "input": "{{sample.output_json.name}}",
        "reference": "{{item.name}}",
        "evaluation_metric": "fuzzy_match",
        "pass_threshold": 0.9,
    }
    equal = {
        "name": "email_grader",
        "type": "string_check",
        "input": "{{sample.output_json.email}}",
        "reference": "{{item.email}}",
        "operation": "eq",
    }
    wire = {
        "type": "multi",
        "name": "contact",
        "graders": {"name": near, "email": equal},
        "calculate_output": "(name + email) / 2",
    }
    item = {"name": "John Doe", "email": "john.doe@gmail.com"}
    answer = '{"name": "Jon Doe", "email": "john.doe@gmail.com"}'
    result = graded(wire, answer, item)
    assert result.sub_rewards == {"name": pytest.approx(14 / 15), "email": 1}
    assert result.reward == pytest.approx((14 / 15 + 1) / 2)


def test_prompts_can_be_answered_later() -> None:
    steps = grading(parse_grader(MULTI), "4", {"reference": "4"})
    prompt = next(steps)
    assert prompt.messages[0]["content"].startswith("Rate 4")
    with pytest.raises(StopIteration) as end:
        steps.send(Completion("1"))
    assert end.value.value.reward == 1


def test_one_grader_serves_many_samples() -> None:
    grader = parse_grader(STRING)
    rewards = [grade(grader, text, {"reference": "b"}, complete=Judge()).reward for text in "abc"]
    assert rewards == [0, 1, 0]


def test_the_models_of_a_grader_are_known_by_field() -> None:
    assert parse_grader(SCORE).models == {"grader.model": "base"}
    wire = MULTI | {"graders": {"a": STRING, "b": LABEL, "c": SCORE}, "calculate_output": "a"}
    assert parse_grader(wire, "x").models == {
        "x.graders.b.model": "base",
        "x.graders.c.model": "base",
    }


PYTHON = {"type": "python", "name": "p", "source": "def grade(sample, item): return 1"}


@pytest.mark.parametrize(
    ("wire", "param"),
    [(PYTHON, "grader.type"), (alone(PYTHON), "grader.graders.part.type")],
    ids=["alone", "in_multi"],
)
def test_python_is_refused(wire: Json, param: str) -> None:
    with pytest.raises(InvalidInput, match="sandbox") as refused:
        parse_grader(wire)
    assert (refused.value.code, refused.value.param) == ("grader_not_enabled", param)


IMAGE = {"type": "input_image", "image_url": "https://example.com/a.png"}


@pytest.mark.parametrize(
    ("wire", "param", "code"),
    [
        (None, "grader", "invalid_value"),
        ([], "grader", "invalid_value"),
        ({}, "grader.type", "missing_required_field"),
        ({"type": "exact"}, "grader.type", "invalid_value"),
        (LABEL, "grader.type", "invalid_value"),
        (STRING | {"operation": "regex"}, "grader.operation", "invalid_value"),
        (STRING | {"name": ""}, "grader.name", "invalid_value"),
        (STRING | {"name": "a\x00"}, "grader.name", "invalid_value"),
        (STRING | {"weight": 1}, "grader.weight", "unknown_field"),
        ({**STRING, "input": ["a"]}, "grader.input", "invalid_value"),
        (STRING | {"reference": "{{x}}"}, "grader.reference", "invalid_value"),
        (SCORE | {"input": []}, "grader.input", "invalid_value"),
        (
            SCORE | {"input": [{"role": "user", "content": IMAGE}]},
            "grader.input[0].content",
            "invalid_value",
        ),
        (
            SCORE | {"input": [{"role": "user", "content": ["{{item}}"]}]},
            "grader.input[0].content[0]",
            "invalid_value",
        ),
        (SCORE | {"range": [1]}, "grader.range", "invalid_value"),
        (SCORE | {"range": [1, 0]}, "grader.range", "invalid_value"),
        (SCORE | {"range": [0, float("inf")]}, "grader.range[1]", "invalid_value"),
        (
            SCORE | {"sampling_params": {"reasoning_effort": "low"}},
            "grader.sampling_params.reasoning_effort",
            "unknown_field",
        ),
        (
            alone(STRING | {"operation": "x"}),
            "grader.graders.part.operation",
            "invalid_value",
        ),
        (alone(STRING | {"input": "{{x}}"}), "grader.graders.part.input", "invalid_value"),
        (alone({"type": "string_check"}), "grader.graders.part.name", "missing_required_field"),
        (alone(MULTI), "grader.graders.part.type", "invalid_value"),
        (alone(STRING, "other"), "grader.calculate_output", "invalid_value"),
        (
            MULTI | {"graders": {"a-b": STRING}, "calculate_output": "1"},
            "grader.graders",
            "invalid_value",
        ),
        (MULTI | {"graders": {}}, "grader.graders", "invalid_value"),
        (
            alone(LABEL | {"passing_labels": ["good"]}),
            "grader.graders.part.passing_labels",
            "invalid_value",
        ),
    ],
)
def test_what_is_wrong_is_named(wire: Any, param: str, code: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_grader(wire)
    assert (refused.value.param, refused.value.code) == (param, code)
    assert param in refused.value.message


def test_every_type_of_grader_of_openais_is_registered() -> None:
    assert set(GRADERS) == {
        "string_check",
        "text_similarity",
        "score_model",
        "label_model",
        "python",
        "multi",
    }
