"""Exports of tasks beside text generation: merged models with their heads, on real base models."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from app.domain.job_spec import AdapterSpec
from app.domain.tasks import TASKS, TEXT_GENERATION
from app.storage.local import LocalStorage
from tests.exporting.conftest import Export, Trained
from tests.tasks.conftest import FindModel, RunTask, task_spec
from tests.tuning.samples import SAMPLES
from worker.training.manifest import BaseModelRef

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

QUICK = "text-classification"
# A sample of half a second is shorter than what speech models are made for.
TASKS_TRIED = [
    pytest.param(task, marks=() if task == QUICK else (pytest.mark.slow,))
    for task in TASKS
    if task != TEXT_GENERATION
]


@pytest.mark.parametrize("task", TASKS_TRIED)
def test_a_model_is_exported_with_its_head(
    task: str,
    run_task: RunTask,
    find_model: FindModel,
    export: Export,
    storage: LocalStorage,
) -> None:
    sample = SAMPLES[task]
    directory = find_model(sample.model)
    method = "continued_pretraining" if task == "fill-mask" else "supervised"
    spec = task_spec(
        storage,
        task,
        sample.records,
        sample.records,
        method=method,
        adapter=AdapterSpec("lora", {"r": 4}),
        batch_size=2,
        learning_rate=1e-2,
    )
    ended = run_task(spec, directory).last
    assert ended["type"] == "finished", ended
    base = BaseModelRef(spec.base_model, str(directory), "revision-1", "tests/base")
    trained = Trained(base, spec, f"{ended['prefix']}/adapter")
    merged = export(trained, "merged")
    assert merged.verification["is_within_limit"]
    assert merged.verification["inputs"] == "validation_file"
    if task == QUICK:
        check_classifier(merged, storage, trained)

    for name in ("train", "heldout"):
        storage.delete(f"files/{name}")
    assert export(trained, "adapter").verification["inputs"] == "fixed"


def check_classifier(merged: Any, storage: LocalStorage, trained: Trained) -> None:
    """Load it as anyone else would: it knows its labels, and its head is the trained one."""
    directory = merged.unpacked()
    model: Any = AutoModelForSequenceClassification.from_pretrained(directory)
    assert set(model.config.id2label.values()) == {"good", "bad"}
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    texts = [record["text"] for record in SAMPLES[QUICK].records]
    with torch.no_grad():
        logits = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    assert float(logits.std()) > 0
    # The base model alone has no head: what is there was trained.
    names = {path.name for path in directory.iterdir()}
    assert {"config.json", "model.safetensors", "task.json", "tokenizer.json"} <= names
