"""Exports of a tiny model in this process: what is in them, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.domain.adapter_archive import check_adapter
from app.domain.errors import ExportFailed, InvalidInput
from app.domain.job_spec import AdapterSpec
from app.domain.peft_kinds import FULL, PEFT_KINDS
from app.storage.local import LocalStorage
from tests.exporting.conftest import Export, Train, Trained, sha256_of
from worker.exporting.packing import pack

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning"),
]

WRONG = "tests.exporting.wrong_formats"
SMALL: dict[str, dict[str, Any]] = {
    "adalora": {"init_r": 4, "target_r": 2},
    "vera": {"r": 16},
    "prompt-tuning": {"num_virtual_tokens": 4},
    "p-tuning": {"num_virtual_tokens": 4, "encoder_hidden_size": 16},
    "prefix-tuning": {"num_virtual_tokens": 4},
}
IDS = torch.tensor([[1, 293, 198, 306, 30, 2]])


@torch.no_grad()
def logits_of(model: Any) -> Tensor:
    found: Tensor = model.eval()(input_ids=IDS).logits
    return found


def plain(directory: Path | str) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


def tuned(trained: Trained, storage: LocalStorage) -> Any:
    """Load the stored adapter by plain `peft`."""
    directory = storage.directory(trained.prefix)
    if trained.spec.adapter.type == FULL:
        model = plain(trained.base.directory)
        return plain(directory) if (directory / "config.json").exists() else model
    return PeftModel.from_pretrained(plain(trained.base.directory), str(directory))


@pytest.mark.parametrize(
    ("name", "quantization"), [("adapter", None), ("merged", None), ("merged", "bfloat16")]
)
def test_what_is_exported_computes_as_the_model_does(
    name: str, quantization: str | None, train: Train, export: Export, storage: LocalStorage
) -> None:
    trained = train()
    exported = export(trained, name, quantization)
    directory = exported.unpacked()
    if name == "adapter":
        found = logits_of(PeftModel.from_pretrained(plain(trained.base.directory), str(directory)))
    else:
        found = logits_of(plain(directory))
    expected = logits_of(tuned(trained, storage))
    difference = float((found - expected).abs().max())
    base = float((logits_of(plain(trained.base.directory)) - expected).abs().max())
    assert base > 0.1  # Something was learnt that could have been lost.
    assert difference < (1e-4 if quantization is None else base / 10)

    verification = exported.verification
    assert verification["is_within_limit"]
    assert verification["inputs"] == "validation_file"
    assert verification["tokens"] > 100
    assert verification["relative_difference"] < 0.01
    names = {path.name for path in directory.iterdir()}
    assert {"README.md", "SHA256SUMS", "manifest.json", "tokenizer.json"} <= names
    sums = (directory / "SHA256SUMS").read_text().splitlines()
    for line in sums:
        digest, _, path = line.partition("  ")
        assert sha256_of(directory / path) == digest
    assert len(sums) == len(names) - 1
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert "<|im_start|>" in tokenizer.chat_template


def test_an_exported_adapter_can_be_uploaded(train: Train, export: Export, tmp_path: Path) -> None:
    directory = export(train(), "adapter").unpacked()
    archive = shutil.make_archive(str(tmp_path / "again"), "zip", directory.parent, directory.name)
    with Path(archive).open("rb") as content:
        assert check_adapter(content).adapter["type"] == "lora"


def test_the_card_says_where_a_model_comes_from(train: Train, export: Export) -> None:
    trained = train()
    card = (export(trained, "adapter").unpacked() / "README.md").read_text()
    spec = trained.spec
    assert spec.validation_file is not None
    for told in (
        'base_model: "tests/small"',
        'license: "apache-2.0"',
        f"`{spec.job_id}`",
        f"`{spec.training_file.file_id}`, 5 records, SHA-256 `{spec.training_file.sha256}`",
        spec.validation_file.sha256,
        "Revision of the weights | `revision-1`",
        "| Seed | 7 |",
        '"learning_rate": 0.05',
        "transformers 5.",
        "tar xf model-adapter.tar.gz",
    ):
        assert told in card, told


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("quantization", "dtype"), [("int8", torch.int8), ("nf4", torch.uint8)])
def test_few_bits_are_loaded_back_as_such(
    quantization: str, dtype: torch.dtype, train: Train, export: Export, storage: LocalStorage
) -> None:
    pytest.importorskip("bitsandbytes")
    trained = train()
    exported = export(trained, "merged", quantization)
    model = plain(exported.unpacked())
    assert model.model.layers[0].mlp.up_proj.weight.dtype == dtype
    expected = logits_of(tuned(trained, storage))
    untuned = logits_of(plain(trained.base.directory))
    difference = (logits_of(model) - expected).norm() / (untuned - expected).norm()
    assert float(difference) < {"int8": 0.3, "nf4": 1.0}[quantization]
    assert exported.verification["is_within_limit"]


@pytest.mark.parametrize("wrong", ["WithoutUpdate", "HalfAnUpdate", "Silent"])
def test_a_wrong_merge_is_refused_with_the_numbers(
    wrong: str, train: Train, export: Export
) -> None:
    with pytest.raises(ExportFailed) as refused:
        export(train(), "merged", implementation=f"{WRONG}:{wrong}")
    if wrong == "Silent":
        assert "gives 0 outputs where the model gives 5" in refused.value.message
        return
    found = refused.value.verification
    assert found is not None
    assert not found["is_within_limit"]
    assert found["max_abs_logit_difference"] > found["limit"]["max_abs_logit_difference"]
    assert str(found["max_abs_logit_difference"]) in refused.value.message


def test_a_file_that_cannot_be_loaded_is_not_published(train: Train, export: Export) -> None:
    with pytest.raises(Exception, match=r"(?i)safetensor|header|incomplete"):
        export(train(), "merged", implementation=f"{WRONG}:Broken")


def test_a_damaged_adapter_is_not_exported(
    train: Train, export: Export, storage: LocalStorage
) -> None:
    trained = train()
    path = storage.directory(trained.prefix) / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"adapter_model\.safetensors is not what was written"):
        export(trained, "adapter")


def test_without_its_records_a_model_is_compared_on_fixed_prompts(
    train: Train, export: Export, storage: LocalStorage
) -> None:
    trained = train()
    for name in ("train", "heldout"):
        storage.delete(f"files/{name}")
    assert export(trained, "adapter").verification["inputs"] == "fixed"


def test_two_attempts_pack_the_same_bytes(tmp_path: Path) -> None:
    made = []
    for number in range(2):
        directory = tmp_path / str(number) / "model"
        (directory / "deep").mkdir(parents=True)
        (directory / "deep" / "b.json").write_text(json.dumps({"a": 1}))
        (directory / "a.txt").write_text("hello")
        made += [pack(directory, "tar.gz")[0], pack(directory, "tar")[0]]
    assert sha256_of(made[0]) == sha256_of(made[2])
    assert sha256_of(made[1]) == sha256_of(made[3])


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(PEFT_KINDS))
def test_every_kind_is_exported_as_its_table_says(kind: str, train: Train, export: Export) -> None:
    trained = train(AdapterSpec(kind, SMALL.get(kind, {})), rate=1e-2)
    assert export(trained, "adapter").verification["is_within_limit"]
    if PEFT_KINDS[kind].is_prompt:
        with pytest.raises(ExportFailed, match="a learnt prompt cannot be added to weights"):
            export(trained, "merged")
    else:
        assert export(trained, "merged").verification["is_within_limit"]
