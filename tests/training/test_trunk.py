"""The trunk against transformers and peft, its oracles, on the real base model.

Packed and padded passes multiply matrices of other shapes, so the last bits differ. Measured:
logits by 3e-5 of about 30, gradients by 3e-6 of about 1; hidden rows reach 55.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from app.domain.errors import InvalidInput
from app.domain.job_spec import DatasetRef, LoraSpec
from tests.training.conftest import (
    dataset_of,
    job_spec,
    random_adapter,
    random_sequences,
    supervised_session,
)
from worker.training.manifest import BaseModelRef
from worker.training.step import trunk_step
from worker.trunk.batch import SequenceRows, pack
from worker.trunk.lora import LoraAdapter, LoraPair
from worker.trunk.peft_format import load_adapter, save_adapter
from worker.trunk.trunk import Trunk

SEQUENCES = random_sequences(29, 5, 17)
UNUSED = DatasetRef("unused", "unused", "0" * 64, 3)


@dataclass(frozen=True)
class Padded:
    """What transformers and peft compute for the sequences as one padded batch."""

    base_hidden: list[Tensor]
    logits: list[Tensor]
    loss: float
    gradients: dict[str, tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def adapter(trunk: Trunk) -> LoraAdapter:
    return random_adapter(trunk, LoraSpec(r=8, alpha=16), seed=3)


@pytest.fixture(scope="module")
def padded(
    trunk: Trunk,
    adapter: LoraAdapter,
    base: BaseModelRef,
    tmp_path_factory: pytest.TempPathFactory,
) -> Padded:
    directory = tmp_path_factory.mktemp("adapter")
    save_adapter(directory, adapter, base.name_or_path)
    reference = AutoModelForCausalLM.from_pretrained(base.directory, dtype=torch.float32)
    model: Any = PeftModel.from_pretrained(reference, directory, is_trainable=True)
    lengths = [len(sequence) for sequence in SEQUENCES]
    input_ids = torch.full((len(SEQUENCES), max(lengths)), 2)
    mask = torch.zeros_like(input_ids)
    for row, sequence in enumerate(SEQUENCES):
        input_ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    with torch.no_grad(), model.disable_adapter():
        hidden = model.base_model.model.model(input_ids, attention_mask=mask).last_hidden_state
    output = model(input_ids, attention_mask=mask, labels=input_ids.masked_fill(mask == 0, -100))
    output.loss.backward()
    gradients = {
        path: tuple(
            model.get_parameter(f"base_model.model.{path}.lora_{side}.default.weight").grad
            for side in "AB"
        )
        for path in adapter.weights
    }
    return Padded(
        base_hidden=[row[:n] for row, n in zip(hidden, lengths, strict=True)],
        logits=[row[:n] for row, n in zip(output.logits.detach(), lengths, strict=True)],
        loss=output.loss.item(),
        gradients=gradients,
    )


def rows_of(trunk: Trunk, *sequences: SequenceRows) -> list[Tensor]:
    """Return the hidden rows of each sequence of one packed pass."""
    batch = pack(sequences)
    with torch.no_grad():
        hidden = trunk.hidden(batch)
    return [hidden[segment.start : segment.end] for segment in batch.segments]


@pytest.fixture
def red_and_blue(trunk: Trunk, adapter: LoraAdapter) -> Any:
    """Two attached adapters of unlike rank and targets."""
    blue = random_adapter(trunk, LoraSpec(4, 16, target_modules=("q_proj", "down_proj")), seed=5)
    trunk.attach("red", adapter)
    trunk.attach("blue", blue)
    yield
    trunk.detach("red")
    trunk.detach("blue")


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
def test_packed_rows_equal_padded_rows(trunk: Trunk, padded: Padded) -> None:
    found = rows_of(trunk, *[SequenceRows(sequence) for sequence in SEQUENCES])

    for packed, expected in zip(found, padded.base_hidden, strict=True):
        torch.testing.assert_close(packed, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
def test_a_saved_adapter_gives_equal_logits_in_peft(
    trunk: Trunk, adapter: LoraAdapter, padded: Padded
) -> None:
    trunk.attach("red", adapter)
    try:
        found = rows_of(trunk, *[SequenceRows(sequence, "red") for sequence in SEQUENCES])
    finally:
        trunk.detach("red")

    for packed, expected in zip(found, padded.logits, strict=True):
        torch.testing.assert_close(trunk.logits(packed), expected, atol=5e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
@pytest.mark.parametrize("token_budget", [1024, 20], ids=["one pass", "accumulated"])
def test_packed_gradients_equal_padded_gradients(
    trunk: Trunk, adapter: LoraAdapter, padded: Padded, token_budget: int
) -> None:
    dataset = dataset_of(*[(sequence, [1] * len(sequence)) for sequence in SEQUENCES])
    trained = LoraAdapter(adapter.spec, dict(adapter.weights))
    session = supervised_session(job_spec(UNUSED, batch_size=3), trained, dataset, trunk)
    trunk.attach(session.name, trained)
    try:
        (found,) = trunk_step(trunk, [session], token_budget)
    finally:
        trunk.detach(session.name)

    assert found.loss == pytest.approx(padded.loss, rel=1e-6)
    assert found.num_tokens == sum(map(len, SEQUENCES))
    for path, pair in trained.weights.items():
        for tensor, expected in zip((pair.a, pair.b), padded.gradients[path], strict=True):
            assert tensor.grad is not None
            torch.testing.assert_close(tensor.grad, expected, atol=1e-5, rtol=1e-4)


# Up to 64 rows, inference lays all adapters side by side; beyond, it takes one after another.
@pytest.mark.parametrize("repeats", [1, 3], ids=["side by side", "one by one"])
@pytest.mark.usefixtures("red_and_blue")
def test_mixed_rows_equal_solo_rows_and_the_base_stays_as_it_is(trunk: Trunk, repeats: int) -> None:
    sequences = random_sequences(9, 4, 6, 5, 8, seed=1) * repeats
    names = ["red", None, "blue", "red", None] * repeats
    mixed = rows_of(trunk, *map(SequenceRows, sequences, names))

    for name in ("red", "blue"):
        solo = rows_of(trunk, *[SequenceRows(sequence, name) for sequence in sequences])
        for row, alone, other in zip(mixed, solo, names, strict=True):
            if other == name:
                torch.testing.assert_close(row, alone, atol=1e-3, rtol=1e-4)
    base = rows_of(trunk, *[SequenceRows(sequence) for sequence in sequences])
    changed = [not torch.equal(row, plain) for row, plain in zip(mixed, base, strict=True)]
    assert changed == [name is not None for name in names]


@pytest.mark.usefixtures("red_and_blue")
def test_rows_after_a_cache_equal_rows_of_the_whole(trunk: Trunk) -> None:
    names = ["red", None, "blue"]
    whole = rows_of(trunk, *map(SequenceRows, SEQUENCES, names))
    caches = [trunk.new_cache(capacity=4) for _ in SEQUENCES]

    for start, end in ((0, 3), (3, 4), (4, None)):
        found = rows_of(
            trunk,
            *[
                SequenceRows(sequence[start:end], name, cache)
                for sequence, name, cache in zip(SEQUENCES, names, caches, strict=True)
            ],
        )

    assert [cache.length for cache in caches] == [len(sequence) for sequence in SEQUENCES]
    for row, expected in zip(found, whole, strict=True):
        torch.testing.assert_close(row[-1], expected[-1], atol=1e-3, rtol=1e-4)


def test_an_adapter_reads_back_as_it_was_written(
    trunk: Trunk, adapter: LoraAdapter, tmp_path: Path
) -> None:
    save_adapter(tmp_path, adapter, "base")

    read = load_adapter(tmp_path)

    assert read.spec.r == adapter.spec.r
    assert read.scaling == adapter.scaling
    assert set(read.spec.target_modules) == set(adapter.spec.target_modules)
    assert read.weights.keys() == adapter.weights.keys()
    for path, pair in read.weights.items():
        assert torch.equal(pair.a, adapter.weights[path].a)
        assert torch.equal(pair.b, adapter.weights[path].b)


def test_an_adapter_of_another_base_model_is_refused(trunk: Trunk, tiny_trunk: Trunk) -> None:
    foreign = random_adapter(tiny_trunk, LoraSpec(r=2, alpha=2), seed=1)

    with pytest.raises(InvalidInput, match="another shape"):
        trunk.attach("foreign", foreign)

    assert trunk.adapters == ()


def test_nothing_is_left_of_an_adapter_that_the_device_does_not_take(tiny_trunk: Trunk) -> None:
    adapter = random_adapter(tiny_trunk, LoraSpec(r=2, alpha=4), seed=0)
    last, pair = list(adapter.weights.items())[-1]
    # Cannot be copied to any device.
    adapter.weights[last] = LoraPair(pair.a, pair.b.to("meta"))

    with pytest.raises(NotImplementedError):
        tiny_trunk.attach("half", adapter)

    assert tiny_trunk.adapters == ()
    tiny_trunk.attach("half", random_adapter(tiny_trunk, LoraSpec(r=2, alpha=4), seed=0))
    tiny_trunk.detach("half")
