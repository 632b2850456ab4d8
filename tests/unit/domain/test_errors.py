import pytest

from app.domain import errors
from app.domain.errors import DomainError

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, DomainError) and kind is not DomainError
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_can_be_raised_without_a_word(kind: type[DomainError]) -> None:
    error = kind()
    assert error.message.endswith(".")
    assert error.message == str(error)
    assert error.code
    assert error.param is None


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_takes_words_of_its_own(kind: type[DomainError]) -> None:
    error = kind("something else", param="seed", code="special")
    assert (error.message, error.param, error.code) == ("something else", "seed", "special")


def test_codes_tell_errors_apart() -> None:
    codes = [kind.code for kind in KINDS]
    assert len(set(codes)) == len(codes)
