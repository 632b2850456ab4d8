"""Text generation by every kind of adapter, on packed streams, against plain `peft`."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from app.domain.errors import InvalidInput
from app.domain.job_spec import DatasetRef, JobSpec
from app.domain.peft_kinds import FULL, PEFT_KINDS
from tests.training.conftest import CPU, job_spec, random_sequences
from tests.tuning.conftest import ROWS, Row, largest_difference, plain_model, trained_steps
from worker.serving.served_adapters import read_mixed
from worker.training.losses.cross_entropy import chunked_cross_entropy
from worker.training.manifest import BaseModelRef
from worker.trunk.batch import SequenceRows, pack
from worker.trunk.loading import load_trunk
from worker.trunk.prompt import PromptAdapter
from worker.trunk.trunk import Trunk
from worker.tuning.merging import merge_into
from worker.tuning.packed import TunedBase, tune_trunk

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    # `peft` reads the ranks that AdaLoRA kept as patterns of names.
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning"),
]

SEQUENCES = random_sequences(9, 4, 13)
STEPS = 6


def spec_of(row: Row) -> JobSpec:
    return replace(job_spec(DatasetRef("unused", "unused", "0" * 64, 1)), adapter=row.adapter)


def tuned_base(base: BaseModelRef, row: Row) -> TunedBase:
    """Return a model after a few steps in which it learnt the sequences."""
    tuned = tune_trunk(load_trunk(Path(base.directory), CPU), spec_of(row), STEPS, 7, None)
    tuned.trunk.generator = torch.Generator().manual_seed(1)
    before, *_, after = trained_steps(tuned.tuning, losses(tuned.trunk))
    assert after < before
    return tuned


def losses(trunk: Trunk) -> Iterator[Tensor]:
    batch = pack([SequenceRows(sequence, "tuned") for sequence in SEQUENCES])
    ends = [segment.end for segment in batch.segments]
    rows = torch.tensor([row for row in range(ends[-1]) if row + 1 not in ends])
    for _ in range(STEPS):
        yield chunked_cross_entropy(
            trunk.hidden(batch)[rows],
            trunk.head_weight,
            batch.input_ids[rows + 1],
            torch.full((len(rows),), 1 / len(rows)),
        ).total


@torch.no_grad()
def packed_logits(trunk: Trunk, adapter: str | None = "tuned") -> list[Tensor]:
    batch = pack([SequenceRows(sequence, adapter) for sequence in SEQUENCES])
    logits = trunk.logits(trunk.hidden(batch))
    return [logits[segment.start : segment.end] for segment in batch.segments]


@torch.no_grad()
def plain_logits(model: Any) -> list[Tensor]:
    return [
        model(input_ids=torch.tensor([sequence])).logits[0, -len(sequence) :]
        for sequence in SEQUENCES
    ]


def plain_base(base: BaseModelRef) -> Any:
    return AutoModelForCausalLM.from_pretrained(base.directory, dtype=torch.float32)


def serves_mixed(row: Row) -> bool:
    return PEFT_KINDS[row.kind].serving == "mixed" and not row.options.get("use_dora")


@torch.no_grad()
def served_logits(trunk: Trunk, directory: Path) -> list[Tensor]:
    """Return what the engine computes: all sequences in one pass, after one of the base model."""
    adapter = read_mixed(directory, lambda path: int(trunk.model.get_submodule(path).in_features))
    if adapter is None:
        return packed_logits(merge_into(trunk, directory), None)
    if isinstance(adapter, PromptAdapter):
        trunk.attach_prompt("tuned", adapter)
    else:
        trunk.attach("tuned", adapter)
    rows = [SequenceRows(ids, "tuned", trunk.new_cache(adapter="tuned")) for ids in SEQUENCES]
    batch = pack([SequenceRows(SEQUENCES[0], None), *rows])
    logits = trunk.logits(trunk.hidden(batch))
    return [logits[segment.start : segment.end] for segment in batch.segments[1:]]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_trained_and_served_as_plain_peft_has_it(
    row: Row, tiny_base: BaseModelRef, tmp_path: Path
) -> None:
    tuned = tuned_base(tiny_base, row)
    tuned.tuning.save(tmp_path, "tests/tiny")

    found = packed_logits(tuned.trunk)
    if row.kind == FULL:
        model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    else:
        model = plain_model(tmp_path, plain_base(tiny_base))
    untuned = plain_logits(plain_base(tiny_base))
    assert largest_difference(found, plain_logits(model)) < 1e-4
    assert largest_difference(found, untuned) > 1e-3
    assert largest_difference(packed_logits(tuned.trunk, None), untuned) < 1e-4

    trunk = load_trunk(Path(tiny_base.directory), CPU)
    served = served_logits(trunk, tmp_path)
    assert largest_difference(served, found) < 1e-4
    assert (trunk.adapters == ("tuned",)) == serves_mixed(row)
    if serves_mixed(row):
        trunk.detach("tuned")
        assert largest_difference(packed_logits(trunk, "tuned"), untuned) < 1e-4


def test_kinds_share_one_batch(tiny_base: BaseModelRef, tmp_path: Path) -> None:
    trunk = load_trunk(Path(tiny_base.directory), CPU)
    mixed = [row for row in ROWS if serves_mixed(row)]
    expected: list[Tensor] = []
    rows: list[SequenceRows] = []
    for row in mixed:
        name, directory = str(row), tmp_path / str(row)
        directory.mkdir()
        tuned = tuned_base(tiny_base, row)
        tuned.tuning.save(directory, "tests/tiny")
        expected.append(packed_logits(tuned.trunk)[0])
        adapter = read_mixed(directory, lambda path: trunk.model.get_submodule(path).in_features)
        assert adapter is not None
        if isinstance(adapter, PromptAdapter):
            trunk.attach_prompt(name, adapter)
        else:
            trunk.attach(name, adapter)
        rows.append(SequenceRows(SEQUENCES[0], name, trunk.new_cache(adapter=name)))
    batch = pack(rows)
    with torch.no_grad():
        logits = trunk.logits(trunk.hidden(batch))

    found = [logits[segment.start : segment.end] for segment in batch.segments]
    assert largest_difference(found, expected) < 1e-4


def test_a_prompt_of_another_model_is_refused(tiny_trunk: Trunk) -> None:
    with pytest.raises(InvalidInput, match="another shape"):
        tiny_trunk.attach_prompt("wide", PromptAdapter(embeddings=torch.zeros(3, 48)))
    past = [(torch.zeros(1, 2, 3, 16), torch.zeros(1, 2, 3, 16))] * 2
    with pytest.raises(InvalidInput, match="another shape"):
        tiny_trunk.attach_prompt("wide", PromptAdapter(past=past))
    assert tiny_trunk.adapters == ()
