"""Weights of 16 bits that lose nothing: whose they are, and that answers stay what they were."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from app.domain.job_spec import LoraSpec
from tests.training.conftest import CPU, heldout_ids, logits_of, random_adapter, random_sequences
from worker.training.manifest import BaseModelRef
from worker.trunk.attention import ATTENTION_NAME
from worker.trunk.batch import SequenceRows
from worker.trunk.half import DoesNotFitError, HalfProduct, held_bytes, is_available
from worker.trunk.loading import load_trunk
from worker.trunk.quicker import use_decoder, use_half
from worker.trunk.trunk import Trunk

pytestmark = pytest.mark.skipif(not is_available(), reason="torch has no such products here")

# From here on the float32 weights are read.
MANY = 48


@pytest.fixture(scope="module")
def packed(base: BaseModelRef) -> Trunk:
    trunk = load_trunk(Path(base.directory), CPU)
    assert use_half(trunk)
    return trunk


def published(rows: int, columns: int, smallest: float) -> Tensor:
    """Weights as a model's in bfloat16, the smallest ones included."""
    generator = torch.Generator().manual_seed(rows)
    weights = torch.randn(rows, columns, generator=generator) * 0.02
    weights[:, ::7] *= smallest
    return weights.bfloat16().float()


# As they are, and by a power of two: the smallest are beyond float16.
@pytest.mark.parametrize("smallest", [1.0, 1e-5])
def test_every_weight_is_held_to_the_last_bit(smallest: float) -> None:
    one, other = published(70, 40, smallest), published(30, 40, smallest)

    held = HalfProduct([one, other], [None, None])(torch.eye(40))

    assert torch.equal(held, torch.cat((one, other)).t())


@pytest.mark.parametrize("smallest", [1.0, 1e-5])
def test_a_bias_is_added_to_its_own_outputs(smallest: float) -> None:
    one, other = published(7, 16, smallest), published(5, 16, smallest)
    bias = torch.randn(5)

    for rows in (torch.zeros(2, 16), torch.zeros(MANY, 16)):
        outputs = HalfProduct([one, other], [None, bias])(rows)
        assert torch.equal(outputs[:, :7], torch.zeros(len(rows), 7))
        assert torch.equal(outputs[:, 7:], bias.expand(len(rows), 5))


def test_a_row_does_not_depend_on_how_many_there_are() -> None:
    product = HalfProduct([published(96, 64, 1.0)], [None])
    rows = torch.randn(MANY - 1, 64, generator=torch.Generator().manual_seed(1))

    together = product(rows)

    for count in range(1, MANY - 1):
        assert torch.equal(product(rows[:count]), together[:count])


def test_numbers_that_do_not_fit_are_refused() -> None:
    in_float32 = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
    # In the matrix they vanish beside the largest; of their own output they are all.
    beside_larger = torch.cat((torch.full((1, 8), 2.0**14), published(1, 8, 1.0) * 2.0**-30))

    no_number = torch.tensor([[1.0, torch.nan]])
    tiny = torch.full((1, 2), 2.0**-128)
    for weights in (in_float32, beside_larger, no_number, tiny):
        with pytest.raises(DoesNotFitError):
            HalfProduct([weights], [None])


def test_answers_stay_what_they_were(trunk: Trunk, packed: Trunk) -> None:
    ids = heldout_ids(trunk, 100)
    # A few rows and many, since they are computed in two ways.
    sequences = [SequenceRows(ids[:30]), SequenceRows(ids)]

    for one in sequences:
        (expected,), (found,) = logits_of(trunk, one), logits_of(packed, one)
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-5)


def test_an_adapter_changes_what_it_changed(trunk: Trunk, packed: Trunk) -> None:
    adapter = random_adapter(trunk, LoraSpec(r=8, alpha=16), seed=3)
    one, other = random_sequences(12, 5)
    found = []
    for each in (trunk, packed):
        each.attach("mine", adapter)
        try:
            found.append(logits_of(each, SequenceRows(one, "mine"), SequenceRows(other)))
        finally:
            each.detach("mine")

    for expected, answer in zip(*found, strict=True):
        torch.testing.assert_close(answer, expected, atol=1e-2, rtol=1e-4)


def test_without_memory_for_copies_a_model_stays_as_it_is(
    base: BaseModelRef, caplog: pytest.LogCaptureFixture
) -> None:
    trunk = load_trunk(Path(base.directory), CPU)
    needed = held_bytes([one for one in trunk.model.parameters() if one.dim() == 2])

    with caplog.at_level("INFO"):
        assert not use_half(trunk, free=lambda _: 2 * needed - 1)

    assert "too little memory is free" in caplog.text
    assert use_half(trunk, free=lambda _: 2 * needed)


def test_where_torch_has_no_such_products_a_model_stays_as_it_is(base: BaseModelRef) -> None:
    trunk = load_trunk(Path(base.directory), CPU)

    with quantized_engine("qnnpack"):
        assert not use_half(trunk)


@contextmanager
def quantized_engine(name: str) -> Iterator[None]:
    """Compute as torch does on processors that it has other kernels for."""
    former = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = former


def test_a_tokenizer_may_know_more_than_its_model(trunk: Trunk) -> None:
    config = AutoConfig.for_model(
        "llama",
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    model: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config, attn_implementation=ATTENTION_NAME
    )
    small = Trunk(model.eval().requires_grad_(False), trunk.tokenizer, trunk.directory)

    assert use_decoder(small)


def test_a_model_of_float32_numbers_stays_as_it_is(tiny_base: BaseModelRef) -> None:
    trunk = load_trunk(Path(tiny_base.directory), CPU)
    decoder = trunk.decoder

    assert not use_half(trunk)

    assert (trunk.decoder, trunk.packing) == (decoder, None)
