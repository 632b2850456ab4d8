"""One step of each loss over preferences on the packed trunk, against TRL's trainers.

Both sides have the same base model, the same adapters (as `peft` loads them) and the same tokens:
TRL in one padded batch, we in packed passes. Loss and gradients agree in float32 to 1e-5 of the
largest.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import LlamaForCausalLM
from trl.trainer.utils import add_fused_lm_head

from app.domain.job_spec import DatasetRef, LoraSpec
from tests.training.conftest import job_spec, random_adapter
from tests.training.losses.trl_losses import dpo_loss, kto_loss, orpo_loss
from tests.training.losses.trl_trainers import FUSED_OUTPUTS, Padded, pad
from tests.training.methods.conftest import (
    FEEDBACK,
    PREFERENCES,
    assert_same_gradients,
    encode,
    gradients,
    on_trunk,
    with_options,
)
from worker.training.manifest import BaseModelRef
from worker.training.methods.dpo import Dpo
from worker.training.preference_records import mismatched
from worker.training.session import Session
from worker.training.step import trunk_step
from worker.trunk.chat import EncodedRecord
from worker.trunk.lora import LoraAdapter
from worker.trunk.peft_format import save_adapter
from worker.trunk.trunk import Trunk

# TRL asks transformers for a property whose name is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

UNUSED = DatasetRef("unused", "unused", "0" * 64, 0)
SHAPE = LoraSpec(r=4, alpha=8, target_modules=("q_proj", "v_proj", "down_proj"))
TOKEN_BUDGET = 70


@pytest.fixture
def policy(tiny_trunk: Trunk) -> LoraAdapter:
    return random_adapter(tiny_trunk, SHAPE, 1)


@pytest.fixture
def start(tiny_trunk: Trunk) -> LoraAdapter:
    return random_adapter(tiny_trunk, SHAPE, 2)


@pytest.fixture
def session(tiny_trunk: Trunk, policy: LoraAdapter) -> Any:
    """Make a session of all records in one batch."""

    def make(records: list[Any], reference: str | None = None, **options: Any) -> Session:
        spec = with_options(job_spec(UNUSED, batch_size=len(records), adapter=SHAPE), **options)
        method = Dpo(spec)
        dataset = encode(tiny_trunk, method, records)
        return Session(spec, method, policy, dataset, tiny_trunk.device, reference=reference)

    return make


def peft_model(
    base: BaseModelRef, adapter: LoraAdapter | None, directory: Path, temperature: float = 1.0
) -> Any:
    """Return the base model with an adapter as TRL's trainers want it."""
    model: Any = LlamaForCausalLM.from_pretrained(base.directory, dtype=torch.float32)
    add_fused_lm_head(model, temperature=temperature, outputs=FUSED_OUTPUTS)
    if adapter is None:
        return model.train(False)
    directory.mkdir()
    save_adapter(directory, adapter, "base")
    return PeftModel.from_pretrained(model, directory, is_trainable=True).train(False)


def padded(batch: list[EncodedRecord]) -> Padded:
    def cut(one: EncodedRecord) -> tuple[list[int], list[int]]:
        start, end = one.loss_weights.index(1), one.loss_weights.index(1) + sum(one.loss_weights)
        # The template's line break after an answer is not learnt.
        return one.input_ids[:start], one.input_ids[start:end]

    return pad([cut(one) for one in batch])


def encoded_batch(session: Session) -> list[EncodedRecord]:
    """Return the sequences of a session's next batch, in order."""
    return [one for part in session.next_batch(TOKEN_BUDGET) for one in part.encoded()]


def peft_gradients(model: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            path, _, side = name.removeprefix("base_model.model.").partition(".lora_")
            found[f"{path}.{side[0]}"] = parameter.grad
    return found


def assert_same_step(
    trunk: Trunk, session: Session, start: LoraAdapter | None, expected: Tensor, model: Any
) -> None:
    expected.backward()  # type: ignore[no-untyped-call]
    with on_trunk(trunk, session, start):
        (found,) = trunk_step(trunk, [session], TOKEN_BUDGET)
    assert found.loss == pytest.approx(expected.item(), rel=1e-5)
    assert session.adapter is not None
    assert_same_gradients(gradients(session.adapter), peft_gradients(model), 1e-5)


@pytest.mark.parametrize("is_continued", [False, True])
@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_a_step_of_the_dpo_trainer(
    tiny_trunk: Trunk,
    tiny_base: BaseModelRef,
    policy: LoraAdapter,
    start: LoraAdapter,
    session: Any,
    tmp_path: Path,
    loss_type: str,
    is_continued: bool,
) -> None:
    of_start = start if is_continued else None
    ours = session(PREFERENCES, "start" if is_continued else None, loss_type=loss_type, beta=0.3)
    sequences = encoded_batch(ours)
    batch = padded([one for one in sequences if one.score] + [s for s in sequences if not s.score])
    model = peft_model(tiny_base, policy, tmp_path / "policy")
    reference = peft_model(tiny_base, of_start, tmp_path / "start")
    expected, _ = dpo_loss(model, reference, batch, loss_type, 0.3)

    assert len(ours.next_batch(TOKEN_BUDGET)) > 1
    assert_same_step(tiny_trunk, ours, of_start, expected, model)


def test_a_step_of_the_orpo_trainer(
    tiny_trunk: Trunk, tiny_base: BaseModelRef, policy: LoraAdapter, session: Any, tmp_path: Path
) -> None:
    # Its NLL is over the prompt too, whose tokens are in no other loss.
    ours = session(PREFERENCES, loss_type="orpo", beta=0.3)
    sequences = encoded_batch(ours)
    chosen = padded([one for one in sequences if one.score])
    rejected = padded([one for one in sequences if not one.score])
    model = peft_model(tiny_base, policy, tmp_path / "policy")
    expected, _ = orpo_loss(model, chosen, rejected, beta=0.3)

    assert_same_step(tiny_trunk, ours, None, expected, model)


@pytest.mark.parametrize("records", [FEEDBACK, PREFERENCES])
def test_a_step_of_the_kto_trainer(
    tiny_trunk: Trunk,
    tiny_base: BaseModelRef,
    policy: LoraAdapter,
    session: Any,
    tmp_path: Path,
    records: list[Any],
) -> None:
    ours = session(records, loss_type="kto", beta=0.3, desirable_weight=1.5)
    sequences = sorted(encoded_batch(ours), key=lambda one: -one.score)
    batch, mismatch = padded(sequences), padded(mismatched(sequences, 256))
    model = peft_model(tiny_base, policy, tmp_path / "policy")
    expected, theirs = kto_loss(
        model,
        peft_model(tiny_base, None, tmp_path / "none"),
        batch,
        mismatch,
        torch.tensor([one.score > 0 for one in sequences]),
        beta=0.3,
        desirable_weight=1.5,
        undesirable_weight=1.0,
    )
    if records is FEEDBACK:
        # Otherwise the test would not see whether the KL is there.
        assert theirs._metrics["eval"]["kl"][0] > 0.001

    assert_same_step(tiny_trunk, ours, None, expected, model)
