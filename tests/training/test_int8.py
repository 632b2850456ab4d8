"""Base models in 8 bits: what it costs, whom it leaves alone, and when it is refused."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from app.domain.job_spec import LoraSpec
from tests.training.conftest import CPU, heldout_ids, logits_of, random_adapter, random_sequences
from worker.training.manifest import BaseModelRef
from worker.trunk.batch import SequenceRows
from worker.trunk.device import DeviceProfile
from worker.trunk.loading import load_trunk
from worker.trunk.quicker import use_int8
from worker.trunk.trunk import Trunk


@pytest.fixture(scope="module")
def rounded(base: BaseModelRef) -> Trunk:
    trunk = load_trunk(Path(base.directory), CPU)
    assert use_int8(trunk)
    return trunk


def test_the_loss_on_heldout_text_stays(trunk: Trunk, rounded: Trunk) -> None:
    ids = heldout_ids(trunk, 400)

    before, after = (
        float(cross_entropy(logits_of(one, SequenceRows(ids))[0][:-1], torch.tensor(ids[1:])))
        for one in (trunk, rounded)
    )

    assert abs(after - before) < 0.05, "nats a token"


def test_a_sequence_does_not_depend_on_its_mates(rounded: Trunk) -> None:
    one, other = random_sequences(6, 9)

    (alone,) = logits_of(rounded, SequenceRows(one))
    together, _ = logits_of(rounded, SequenceRows(one), SequenceRows(other))

    # Far below what rounding costs: a scale that both shared would show.
    torch.testing.assert_close(together, alone, atol=2e-3, rtol=1e-4)


def test_an_adapter_changes_its_own_rows_only(rounded: Trunk) -> None:
    adapter = random_adapter(rounded, LoraSpec(r=8, alpha=16), seed=3)
    one, other = random_sequences(12, 5)
    before = logits_of(rounded, SequenceRows(one), SequenceRows(other))
    rounded.attach("mine", adapter)
    try:
        after = logits_of(rounded, SequenceRows(one, "mine"), SequenceRows(other))
    finally:
        rounded.detach("mine")

    assert not torch.allclose(after[0], before[0], atol=1e-2)
    torch.testing.assert_close(after[1], before[1], atol=2e-3, rtol=1e-4)


def test_a_model_that_would_suffer_stays_as_it_is(
    tiny_base: BaseModelRef, caplog: pytest.LogCaptureFixture
) -> None:
    trunk = load_trunk(Path(tiny_base.directory), CPU)
    # One channel dwarfs the others, which then share what is left of 8 bits.
    trunk.model.get_submodule("model.norm").weight.data[0] *= 1e5
    trunk.head_weight.data[:, 0] /= 1e5
    trunk.head_weight.data *= 20
    (ids,) = random_sequences(7)
    (before,) = logits_of(trunk, SequenceRows(ids))

    assert not use_int8(trunk)

    assert "would diverge" in caplog.text
    assert torch.equal(logits_of(trunk, SequenceRows(ids))[0], before)


def test_only_float32_is_rounded(tiny_base: BaseModelRef, caplog: pytest.LogCaptureFixture) -> None:
    trunk = load_trunk(Path(tiny_base.directory), DeviceProfile("cpu", "bfloat16", 1))

    assert not use_int8(trunk)

    assert "in float32 on a CPU" in caplog.text
