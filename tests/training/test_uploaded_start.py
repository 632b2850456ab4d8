"""A run starts from an uploaded adapter as from one of another job, or not at all."""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from app.domain.errors import InvalidInput, TrainingFailed
from app.domain.job_spec import AdapterRef, FileRef, JobSpec, LoraSpec
from app.storage.local import LocalStorage
from tests.support.adapters import CONFIG, WEIGHTS, zipped
from tests.training.conftest import SHORT_CHATS, RunAttempt, job_spec, put_records
from worker.training.checkpoints import locate_start
from worker.training.manifest import BaseModelRef
from worker.trunk.listing import write_listing

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

TARGETS = ["down_proj", "q_proj"]


@pytest.fixture
def spec(storage: LocalStorage) -> JobSpec:
    lora = LoraSpec(r=4, alpha=8, target_modules=tuple(TARGETS))
    return job_spec(put_records(storage, "train", SHORT_CHATS), adapter=lora)


@pytest.fixture
def adapter(tiny_base: BaseModelRef, tmp_path: Path) -> Path:
    """What `peft` saves of an adapter that changes what the model computes."""
    return saved(tiny_base, tmp_path / "adapter", TARGETS)


def saved(base: BaseModelRef, directory: Path, targets: list[str]) -> Path:
    torch.manual_seed(3)
    model: Any = AutoModelForCausalLM.from_pretrained(base.directory)
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False
    )
    adapted = peft.get_peft_model(model, config)
    adapted.save_pretrained(str(directory), save_embedding_layers=False)
    return directory


def zip_of(directory: Path) -> bytes:
    return zipped({path.name: path.read_bytes() for path in directory.iterdir()}, "adapter/")


def upload(storage: LocalStorage, content: bytes) -> AdapterRef:
    storage.put("files/file-adapter", [content])
    digest = hashlib.sha256(content).hexdigest()
    return AdapterRef(file=FileRef("file-adapter", "files/file-adapter", digest))


def first_loss(
    run_attempt: RunAttempt, spec: JobSpec, start: AdapterRef | None, lease: int
) -> float:
    attempt = run_attempt(replace(spec, start_from=start), lease=lease)
    assert attempt.last["type"] == "finished"
    loss: float = attempt.of_type("step")[0]["train_loss"]
    return loss


def test_a_run_goes_on_from_the_weights_that_peft_saved(
    run_attempt: RunAttempt, storage: LocalStorage, spec: JobSpec, adapter: Path
) -> None:
    uploaded = upload(storage, zip_of(adapter))
    published = storage.scratch()
    shutil.copytree(adapter, published / "adapter")
    write_listing(published)
    storage.publish("jobs/ftjob-first/e1/step-3", published)
    trained = AdapterRef("ft:tiny:first", "jobs/ftjob-first/e1/step-3/adapter")

    loss = first_loss(run_attempt, spec, uploaded, 1)

    assert loss == first_loss(run_attempt, spec, trained, 2)
    assert loss != first_loss(run_attempt, spec, None, 3)
    assert scratch_of(storage) == set()


def test_what_is_unpacked_is_there_as_long_as_it_is_lent(
    storage: LocalStorage, adapter: Path
) -> None:
    with locate_start(storage, upload(storage, zip_of(adapter))) as directory:
        assert directory is not None
        assert {path.name for path in directory.iterdir()} == {CONFIG, WEIGHTS}
        # However long a run takes.
        storage.delete_abandoned(0)
        assert (directory / WEIGHTS).read_bytes() == (adapter / WEIGHTS).read_bytes()
    assert scratch_of(storage) == set()


def change_the_content(storage: LocalStorage, content: bytes) -> AdapterRef:
    start = upload(storage, content)
    storage.delete("files/file-adapter")
    storage.put("files/file-adapter", [content + b"\0"])
    return start


def delete_the_content(storage: LocalStorage, content: bytes) -> AdapterRef:
    start = upload(storage, content)
    storage.delete("files/file-adapter")
    return start


def upload_no_adapter(storage: LocalStorage, content: bytes) -> AdapterRef:
    return upload(storage, content[:-30])


@pytest.mark.parametrize(
    ("mishap", "told"),
    [
        (change_the_content, "has changed"),
        (delete_the_content, "no content"),
        (upload_no_adapter, "the zip is damaged"),
    ],
)
def test_damaged_content_is_never_trained_from(
    run_attempt: RunAttempt,
    storage: LocalStorage,
    spec: JobSpec,
    adapter: Path,
    mishap: Callable[[LocalStorage, bytes], AdapterRef],
    told: str,
) -> None:
    start = mishap(storage, zip_of(adapter))
    with pytest.raises(TrainingFailed, match=told) as failed:
        run_attempt(replace(spec, start_from=start))
    assert failed.value.code == "start_damaged"
    assert failed.value.param == "tunesmith.start_from.file"
    assert scratch_of(storage) == set()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_found(
    run_attempt: RunAttempt, storage: LocalStorage, spec: JobSpec, adapter: Path, value: float
) -> None:
    tensors = load_file(adapter / WEIGHTS)
    name = sorted(tensors)[0]
    tensors[name].view(-1)[5] = value
    save_file(tensors, adapter / WEIGHTS)
    with pytest.raises(TrainingFailed, match="not finite") as failed:
        run_attempt(replace(spec, start_from=upload(storage, zip_of(adapter))))
    assert name in failed.value.message
    assert failed.value.code == "start_damaged"


CHANGES: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "cannot be adapted": lambda tensors: {
        name.replace("model.layers.0.mlp.down_proj", "lm_head"): tensor
        for name, tensor in tensors.items()
    },
    "another shape": lambda tensors: {
        name: torch.cat([tensor, tensor], 1) if "lora_A" in name else tensor
        for name, tensor in tensors.items()
    },
    "no linear layer": lambda tensors: {
        name.replace("layers.1", "layers.9"): tensor for name, tensor in tensors.items()
    },
}


@pytest.mark.parametrize("told", CHANGES)
def test_an_adapter_of_another_model_is_refused(
    run_attempt: RunAttempt, storage: LocalStorage, spec: JobSpec, adapter: Path, told: str
) -> None:
    save_file(CHANGES[told](load_file(adapter / WEIGHTS)), adapter / WEIGHTS)
    with pytest.raises(InvalidInput, match=told):
        run_attempt(replace(spec, start_from=upload(storage, zip_of(adapter))))


def scratch_of(storage: LocalStorage) -> set[str]:
    return set(storage.list("tmp")) - {".clock"}
