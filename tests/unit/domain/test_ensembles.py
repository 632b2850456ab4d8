"""How answers become one, and how weights do."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.ensembles import mean, normalised, top_k
from app.domain.errors import InvalidInput

WEIGHTS = st.lists(
    st.floats(min_value=sys.float_info.min, allow_infinity=False), min_size=2, max_size=16
)


@given(WEIGHTS)
def test_weights_are_one_together_and_keep_their_order(weights: list[float]) -> None:
    found = normalised(weights, len(weights))
    assert sum(found) == pytest.approx(1)
    for one, other in zip(weights, found, strict=True):
        assert found[weights.index(max(weights))] >= other >= 0
        assert other == pytest.approx(one / max(weights) * max(found), abs=1e-12)


def test_without_weights_all_count_alike() -> None:
    assert normalised(None, 4) == [0.25] * 4
    with pytest.raises(InvalidInput, match="one for each of the 3 models") as refused:
        normalised([1.0, 2.0], 3)
    assert refused.value.param == "weights"


def test_the_mean_is_taken_by_label_and_the_likeliest_is_first() -> None:
    one = [{"label": "a", "score": 0.7}, {"label": "b", "score": 0.2}, {"label": "c", "score": 0.1}]
    other = [
        {"label": "c", "score": 0.8},
        {"label": "b", "score": 0.2},
        {"label": "a", "score": 0.0},
    ]
    found = mean([one, other], [0.25, 0.75])
    assert [(entry["label"], entry["score"]) for entry in found] == [
        ("c", pytest.approx(0.625)),
        ("b", pytest.approx(0.2)),
        ("a", pytest.approx(0.175)),
    ]


def test_as_many_labels_are_told_as_by_one_model() -> None:
    assert top_k("text-classification", {}) == 1
    assert top_k("image-classification", {}) == 5
    assert top_k("image-classification", {"top_k": None}) is None
    assert top_k("text-classification", {"top_k": 3}) == 3


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"top_k": 0}, "parameters.top_k"),
        ({"top_k": 1.5}, "parameters.top_k"),
        ({"top_k": True}, "parameters.top_k"),
        ({"function_to_apply": "none"}, "parameters.function_to_apply"),
    ],
)
def test_other_parameters_are_refused_by_name(parameters: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        top_k("image-classification", parameters)
    assert refused.value.param == param
