"""The lowest layers of a model stay as they are."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BertConfig, BertForSequenceClassification

from app.domain.errors import InvalidInput
from app.domain.job_spec import AdapterSpec, LoraSpec
from app.storage.local import LocalStorage
from tests.training.conftest import SHORT_CHATS, RunAttempt, job_spec, put_records
from worker.training.manifest import BaseModelRef
from worker.trunk.depth import block_of
from worker.trunk.lora import new_adapter
from worker.trunk.peft_format import load_adapter
from worker.trunk.trunk import Trunk
from worker.tuning.full_tuning import FullTuning
from worker.tuning.peft_config import Surroundings
from worker.tuning.peft_tuning import PeftTuning

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers")


def encoder() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=32,
        )
    )


def test_a_run_leaves_the_lowest_layers_alone_and_loads_with_peft(
    run_attempt: RunAttempt, storage: LocalStorage, tiny_base: BaseModelRef, tmp_path: Path
) -> None:
    spec = job_spec(put_records(storage, "train", SHORT_CHATS), batch_size=5)
    spec = replace(spec, hyperparameters=replace(spec.hyperparameters, freeze_layers=1))

    prefix = run_attempt(spec).last["prefix"]

    directory = storage.directory(f"{prefix}/adapter")
    assert {block_of(path) for path in load_adapter(directory).weights} == {1}
    model = AutoModelForCausalLM.from_pretrained(tiny_base.directory)
    adapted = {
        name for name, _ in PeftModel.from_pretrained(model, directory).named_modules()
        if name.endswith("lora_A")
    }  # fmt: skip
    assert adapted
    assert all(".layers.1." in name for name in adapted)


def test_an_adapter_goes_above_the_frozen_layers() -> None:
    around = Surroundings(encoder(), ["classifier"], "SEQ_CLS", 4, frozen_layers=2)
    tuning = PeftTuning(AdapterSpec(), around)

    blocks = {block_of(name) for group in tuning.groups() for name, _ in group.weights}

    # The head is in no block.
    assert blocks == {2, None}


def test_of_all_weights_those_of_the_lowest_layers_and_the_embeddings_stay() -> None:
    names = [name for name, _ in FullTuning(encoder(), frozen_layers=2).groups()[0].weights]

    assert {block_of(name) for name in names} == {2, None}
    assert not any("embeddings" in name for name in names)
    assert any("classifier" in name for name in names)


def test_freezing_everything_is_refused(tiny_trunk: Trunk) -> None:
    with pytest.raises(InvalidInput, match="freeze_layers 2 leaves no layer"):
        new_adapter(tiny_trunk.model, LoraSpec(r=2, alpha=2), 0, frozen_layers=2)
    with pytest.raises(InvalidInput, match="freeze_layers 3"):
        FullTuning(encoder(), frozen_layers=3)
    with pytest.raises(InvalidInput, match="freeze_layers 3"):
        PeftTuning(AdapterSpec(), Surroundings(encoder(), ["classifier"], "SEQ_CLS", 4, 3))
