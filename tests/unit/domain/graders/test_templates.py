import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import InvalidInput
from app.domain.graders.grading import GradingFailed, Sample
from app.domain.graders.templates import MAX_VARIABLES, parse_template

ITEM = {
    "answer": "42",
    "number": 0.5,
    "nothing": None,
    "is_true": True,
    "deep": {"list": [{"x": "here"}, "second"]},
    "0": "zero",
    "größe": "XL",
    "trap": "{{item.answer}}{{sample.output_text}}",
    "{{item.answer}}": 1,
}


def rendered(template: str, text: str = "the answer", item: dict[str, Any] | None = None) -> str:
    sample = Sample(text, ITEM if item is None else item)
    return parse_template(template, "grader.input").render(sample)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("", ""),
        ("plain } text }} { of {a: 1}", "plain } text }} { of {a: 1}"),
        ("{{sample.output_text}}", "the answer"),
        ("{{ item.answer }}", "42"),
        ("<{{item.answer}}|{{item.answer}}>", "<42|42>"),
        ("{{item.number}} {{item.nothing}} {{item.is_true}}", "0.5 null true"),
        ("{{item.deep.list[0].x}}", "here"),
        ("{{item.deep.list[1]}}", "second"),
        ("{{item.deep}}", '{"list": [{"x": "here"}, "second"]}'),
        ("{{item.0}}", "zero"),
        ("{{item.größe}}", "XL"),
    ],
)
def test_variables_are_put_in(template: str, expected: str) -> None:
    assert rendered(template) == expected


def test_a_value_is_never_read_as_a_template() -> None:
    assert rendered("{{item.trap}}") == ITEM["trap"]
    assert rendered("{{sample.output_text}}", text="{{item.answer}}") == "{{item.answer}}"


def test_the_sample_can_be_looked_into_if_it_is_json() -> None:
    answer = json.dumps({"steps": [{"text": "first"}], "result": 3})
    assert rendered("{{sample.output_json.steps[0].text}}", answer) == "first"
    assert rendered("{{sample.output_json.result}}", answer) == "3"
    assert rendered("{{sample.output_json[1]}}", "[1, 2]") == "2"
    assert rendered("{{sample.output_json}}", "[1,2]") == "[1, 2]"


@pytest.mark.parametrize("text", ["", "no JSON", "{", "NaN", '{"a": Infinity}', "[" * 100_000])
def test_a_sample_that_is_no_json_is_an_error_of_the_sample(text: str) -> None:
    with pytest.raises(GradingFailed) as failed:
        rendered("{{sample.output_json.a}}", text)
    assert failed.value.kind == "sample_parse_error"


@pytest.mark.parametrize(
    "variable",
    [
        "item.missing",
        "item.answer.length",
        "item.deep.list[2]",
        "item.deep.list.0",
        "item[0]",
        "item.deep[0]",
        "item.number.real",
        "item.__class__",
        "sample.output_json.missing",
    ],
)
def test_a_variable_without_value_is_named(variable: str) -> None:
    with pytest.raises(GradingFailed) as failed:
        rendered(f"{{{{ {variable} }}}}", text="{}")
    assert failed.value.kind == "invalid_variable_error"
    assert f"{{{{{variable}}}}}" in failed.value.message


@pytest.mark.parametrize(
    "inside",
    [
        "",
        " ",
        "item",
        "sample",
        "item.",
        "item..a",
        "item.a b",
        "item.a[x]",
        "item.a[-1]",
        "item['a']",
        "items.a",
        "answer",
        "item.a | upper",
        "7 * 7",
        "config.items()",
        "sample.output_tools",
        "sample.output_text.x",
        "sample.item.answer",
        "sample[0]",
        "item" + ".a" * 17,
    ],
)
def test_an_unknown_variable_is_refused_when_the_grader_is_read(inside: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_template(f"a {{{{{inside}}}}} b", "grader.input")
    assert refused.value.param == "grader.input"
    assert f"{{{{{inside.strip()}" in refused.value.message


def test_a_variable_that_is_not_closed_is_refused() -> None:
    with pytest.raises(InvalidInput, match="never closed"):
        parse_template("{{item.answer}", "grader.input")


def test_variables_are_counted() -> None:
    parse_template("{{item.a}}" * MAX_VARIABLES, "grader.input")
    with pytest.raises(InvalidInput, match="variables"):
        parse_template("{{item.a}}" * (MAX_VARIABLES + 1), "grader.input")


def test_a_value_nested_too_deep_is_an_error_of_the_variable() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    try:
        with pytest.raises(GradingFailed, match=r"item\.deep") as failed:
            rendered("{{item.deep}}", item={"deep": deep})
        assert failed.value.kind == "invalid_variable_error"
    finally:
        # Freed layer by layer, not by a recursion.
        while isinstance(deep, list):
            (deep,) = deep


@given(st.text(alphabet="{}ia.[0]tem sample_otpu", max_size=60))
def test_any_template_is_read_or_refused(text: str) -> None:
    template = None
    with suppress(InvalidInput):
        template = parse_template(text, "grader.input")
    if "{{" not in text:
        assert template is not None
        assert template.render(Sample("", {})) == text
