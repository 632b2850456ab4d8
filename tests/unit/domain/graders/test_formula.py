import math
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.domain.errors import InvalidInput
from app.domain.graders.formula import FUNCTIONS, MAX_CHARACTERS, is_name, parse_formula

NAMES = {"a": 0.25, "b": 0.5, "zero": 0.0}


def value_of(text: str) -> float:
    return parse_formula(text, NAMES, "formula").evaluate(NAMES)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a", 0.25),
        ("1", 1),
        ("0.8 * a + 0.2 * b", 0.3),
        ("a - b", -0.25),
        ("b / a", 2),
        ("-(a + b)", -0.75),
        ("+a", 0.25),
        # A power binds more tightly than a product, as OpenAI writes it.
        ("2 * a ^ 2", 0.125),
        ("a ^ b", 0.5),
        ("min(a, b, 3)", 0.25),
        ("max(a, b)", 0.5),
        ("max(a)", 0.25),
        ("abs(a - b)", 0.25),
        ("floor(2.5) + ceil(2.5)", 5),
        ("exp(zero)", 1),
        ("sqrt(a)", 0.5),
        ("log(exp(b))", 0.5),
        ("a +\n  b", 0.75),
        ("1e-1", 0.1),
    ],
)
def test_it_computes(text: str, value: float) -> None:
    assert value_of(text) == pytest.approx(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "a +",
        "a b",
        "c",
        "a.__class__",
        "a.real",
        "__import__('os')",
        "a[0]",
        "(a, b)",
        "a if b else 1",
        "a and b",
        "not a",
        "a < b",
        "a == b",
        "a ** b",
        "a // b",
        "a % b",
        "a | b",
        "~1",
        "'a'",
        'f"{a}"',
        "lambda: 1",
        "[a for a in b]",
        "{a}",
        "(a := 1)",
        "True",
        "None",
        "1j",
        "1e999",
        "9" * 400,
        "min()",
        "sqrt(a, b)",
        "sqrt()",
        "min(*a)",
        "max(a, key=b)",
        "round(a)",
        "eval(a)",
        "min",
        "a(b)",
        "min(a)(b)",
        "ａ",
        "a; b",
        "a # b",
        "(" * 300 + "a" + ")" * 300,
        "-" * 900 + "a",
        "+".join("a" * 300),
        "a + " * 400 + "a",
        "a\x00",
        "\ud83d",
    ],
)
def test_what_is_not_arithmetic_is_refused_by_field(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_formula(text, NAMES, "grader.calculate_output")
    assert refused.value.param == "grader.calculate_output"
    assert len(refused.value.message) < 300


def test_a_name_that_is_no_grader_is_named() -> None:
    with pytest.raises(InvalidInput, match=r"'c'.*a, b, zero"):
        parse_formula("a + c", NAMES, "formula")


@pytest.mark.parametrize(
    "text",
    [
        "1 / zero",
        "log(zero)",
        "sqrt(0 - 1)",
        "exp(1000)",
        "9 ^ 9 ^ 9 ^ 9",
        "(0 - 1) ^ 0.5",
        "zero ^ (0 - 1)",
        "1e300 * 1e300",
        "floor(1e300 * 1e300)",
    ],
)
def test_no_finite_result_is_an_error(text: str) -> None:
    formula = parse_formula(text, NAMES, "formula")
    with pytest.raises(InvalidInput):
        formula.evaluate(NAMES)


def test_the_names_in_it_are_known() -> None:
    assert parse_formula("min(a, 1) + a", NAMES, "formula").names == {"a"}


@pytest.mark.parametrize("name", ["a", "_", "exact_match", "A1"])
def test_what_a_formula_can_name(name: str) -> None:
    assert is_name(name)


@pytest.mark.parametrize(
    "name", ["", "1a", "a-b", "a b", "a.b", "é", "if", "None", "lambda", "x" * 65, *FUNCTIONS]
)
def test_what_no_formula_can_name(name: str) -> None:
    assert not is_name(name)


# Pieces that come near to a formula more often than letters at random do.
PIECES = st.sampled_from(
    [*NAMES, *FUNCTIONS, *"+-*/^(),. 0123456789e_", "**", "//", ".__class__", "1e308", "9999", "if"]
)
NEAR = st.lists(PIECES, max_size=40).map("".join)


@given(st.one_of(NEAR, st.text(max_size=MAX_CHARACTERS + 10)))
@example("9^9^9^9^9^9^9")
@example("1if 1else 2")
@example("0x1for x in a")
@example("a" * (MAX_CHARACTERS + 1))
def test_any_text_has_a_finite_value_or_is_refused(text: str) -> None:
    value = 0.0
    with suppress(InvalidInput):
        value = value_of(text)
    assert isinstance(value, float)
    assert math.isfinite(value)


EXPRESSIONS: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from(["a", "b", "2.5", "3"]),
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(
        lambda parts: f"({' '.join(parts)})"
    ),
    max_leaves=12,
)


@given(EXPRESSIONS)
def test_plain_arithmetic_is_that_of_python(text: str) -> None:
    try:
        expected = eval(text, {"__builtins__": {}}, dict(NAMES))
    except ZeroDivisionError:
        with pytest.raises(InvalidInput):
            value_of(text)
    else:
        assert value_of(text) == expected
