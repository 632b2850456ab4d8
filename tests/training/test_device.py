import pytest

from app.domain.errors import InvalidInput
from worker.trunk.device import probe_device

ONE_THREAD = {"TUNESMITH_THREADS": "1"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_operator_may_choose_the_format(dtype: str) -> None:
    assert probe_device({**ONE_THREAD, "TUNESMITH_DTYPE": dtype}).dtype_name == dtype


def test_a_format_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(InvalidInput, match="TUNESMITH_DTYPE must be float32 or bfloat16"):
        probe_device({**ONE_THREAD, "TUNESMITH_DTYPE": "float16"})


def test_answers_are_exact_on_a_cpu_unless_an_operator_says_otherwise() -> None:
    usual = probe_device(ONE_THREAD)
    expected = "float32" if usual.device == "cpu" else usual.dtype_name
    assert probe_device(ONE_THREAD, is_for_answers=True).dtype_name == expected
    chosen = {**ONE_THREAD, "TUNESMITH_DTYPE": "bfloat16"}
    assert probe_device(chosen, is_for_answers=True).dtype_name == "bfloat16"


def test_the_format_is_the_same_at_every_start() -> None:
    """What a run began in it goes on in, after whatever restart."""
    assert len({probe_device(ONE_THREAD) for _ in range(3)}) == 1
