"""The formula of a `multi` grader: arithmetic over the scores of its graders, and nothing else.

Python's own parser reads it; what it made is kept only if every node is on a short list. All
numbers are floats, so that no power grows beyond one.
"""

import ast
import keyword
import math
import operator
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from app.domain.errors import InvalidInput

MAX_CHARACTERS = 1_000
MAX_DEPTH = 64

_CHARACTERS = re.compile(r"[A-Za-z0-9_+\-*/^().,\s]+", re.ASCII)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)

_OPERATORS: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    # The operator would make a complex number of a root of a negative one.
    ast.Pow: math.pow,
}
_SIGNS: Mapping[type[ast.unaryop], Callable[[float], float]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
_OF_ONE: Mapping[str, Callable[[float], float]] = {
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}
_OF_MANY: Mapping[str, Callable[[list[float]], float]] = {"min": min, "max": max}

FUNCTIONS = (*_OF_MANY, *_OF_ONE)
_ALLOWED = f"names of graders, numbers, + - * / ^ and {', '.join(FUNCTIONS)}"


@dataclass(frozen=True, slots=True)
class Formula:
    """A formula whose every part was checked; `names` are those that occur in it."""

    expression: ast.expr
    names: frozenset[str]

    def evaluate(self, values: Mapping[str, float]) -> float:
        """Compute the formula. Raises: InvalidInput, where there is no finite result."""
        try:
            result = _evaluate(self.expression, values)
        except (ArithmeticError, ValueError) as error:
            raise InvalidInput(f"the formula has no result here: {error}") from None
        if not math.isfinite(result):
            raise InvalidInput("the formula has no finite result here")
        return result


def is_name(text: str) -> bool:
    """Say whether a formula can refer to a grader by this name."""
    is_word = _NAME.fullmatch(text) is not None and not keyword.iskeyword(text)
    return is_word and text not in FUNCTIONS


def parse_formula(text: str, names: Collection[str], where: str) -> Formula:
    """Read a formula over `names`.

    Raises:
        InvalidInput: with `where` as its param, saying what is not allowed in it.
    """
    if len(text) > MAX_CHARACTERS:
        raise _invalid(where, f"longer than {MAX_CHARACTERS:,} characters")
    if _CHARACTERS.fullmatch(text) is None or "**" in text:
        raise _invalid(where, f"expected {_ALLOWED}, and nothing else")
    try:
        # OpenAI writes powers as ^, which in Python is another operator of another rank.
        source = " ".join(text.split()).replace("^", "**")
        expression = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else "too deeply nested"
        raise _invalid(where, f"not a formula ({reason})") from None
    found: set[str] = set()
    level: list[ast.expr] = [expression]
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in _parts(node, names, found, where)]
        if not level:
            return Formula(expression, frozenset(found))
    raise _invalid(where, f"nested deeper than {MAX_DEPTH} levels")


def _parts(node: ast.expr, names: Collection[str], found: set[str], where: str) -> list[ast.expr]:
    """Check one node; return what it is computed from."""
    match node:
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return [left, right]
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _SIGNS:
            return [operand]
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            _check_arguments(name, arguments, where)
            return arguments
        case ast.Name(id=name):
            if name not in names:
                known = ", ".join(sorted(names))
                raise _invalid(where, f"no grader is named {name!r}; expected one of {known}")
            found.add(name)
            return []
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            _check_number(number, where)
            return []
    raise _invalid(where, f"expected {_ALLOWED}, and nothing else")


def _check_arguments(name: str, arguments: list[ast.expr], where: str) -> None:
    if not arguments or (name in _OF_ONE and len(arguments) > 1):
        expected = "one argument" if name in _OF_ONE else "at least one argument"
        raise _invalid(where, f"{name} takes {expected}, found {len(arguments)}")


def _check_number(number: int | float, where: str) -> None:
    try:
        is_finite = math.isfinite(float(number))
    except OverflowError:
        is_finite = False
    if not is_finite:
        raise _invalid(where, "a number in it is too large")


def _evaluate(node: ast.expr, values: Mapping[str, float]) -> float:
    match node:
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](_evaluate(left, values), _evaluate(right, values))
        case ast.UnaryOp(op=sign, operand=operand):
            return _SIGNS[type(sign)](_evaluate(operand, values))
        case ast.Call(func=ast.Name(id=name), args=arguments):
            numbers = [_evaluate(argument, values) for argument in arguments]
            if name in _OF_MANY:
                return _OF_MANY[name](numbers)
            return float(_OF_ONE[name](numbers[0]))
        case ast.Name(id=name):
            return float(values[name])
        case ast.Constant(value=int() | float() as number):
            return float(number)
    raise AssertionError("a formula is checked when it is read")


def _invalid(where: str, what: str) -> InvalidInput:
    return InvalidInput(f"Invalid {where!r}: {what}.", param=where)
