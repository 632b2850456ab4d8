"""In what the engine computes a base model, and a model that was made of one."""

from pathlib import Path

import pytest

from tests.serving.conftest import CPU
from worker.serving.trunk_loading import trunk_loader
from worker.trunk.half import is_available
from worker.trunk.trunk import Packing, Trunk

HALF = pytest.param(
    "native",
    "half",
    marks=pytest.mark.skipif(not is_available(), reason="torch has no such products here"),
)


@pytest.mark.parametrize(("weights", "packing"), [HALF, ("int8", "int8")])
def test_a_base_model_is_packed(base_model_dir: Path, weights: str, packing: Packing) -> None:
    assert trunk_loader(weights, CPU)(base_model_dir).packing == packing


@pytest.mark.parametrize(("weights", "packing"), [("native", None), ("int8", "int8")])
def test_what_was_made_of_it_is_packed_with_its_own_weights(
    base_model_dir: Path, weights: str, packing: Packing | None
) -> None:
    seen: list[Packing | None] = []

    def tune(trunk: Trunk) -> Trunk:
        seen.append(trunk.packing)
        for weight in trunk.model.parameters():
            weight.mul_(1.0001)  # Which 16 bits do not hold.
        return trunk

    tuned = trunk_loader(weights, CPU)(base_model_dir, tune)

    # Nothing held copies of what it changed.
    assert seen == [None]
    assert tuned.packing == packing
