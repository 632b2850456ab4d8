"""Images of another size than the base model's own: chosen by a job, and kept for serving."""

import json
from pathlib import Path

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from app.domain.errors import InvalidInput
from app.domain.job_spec import AdapterSpec
from app.domain.registry import resolve
from app.domain.tasks import TASKS
from app.storage.local import LocalStorage
from tests.support.datasets import as_zip, digits
from tests.tasks.conftest import FindModel, RunTask, numbered, task_spec
from tests.training.conftest import CPU
from worker.task_file import TASK_NAME
from worker.tasks import IMAGE_SIZE
from worker.tasks.image_classification import ImageClassification

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

TASK = "image-classification"
RANK_8 = AdapterSpec(options={"r": 8})


def test_a_job_chooses_the_size_and_its_model_keeps_it(
    run_task: RunTask, storage: LocalStorage, find_model: FindModel
) -> None:
    directory = find_model("efficientnet-lite0")
    spec = task_spec(
        storage, TASK, as_zip(digits(16), "image"), adapter=RANK_8, batch_size=16, image_size=64
    )
    attempt = run_task(spec, directory)

    prefix = storage.directory(f"{attempt.last['prefix']}/adapter")
    outline = json.loads((prefix / TASK_NAME).read_text())["outline"]
    assert outline[IMAGE_SIZE] == 64
    implementation = TASKS[TASK].implementation
    assert implementation is not None
    task = resolve(implementation)(directory, outline, CPU, None)
    example = task.encode_input(digits(1)[0]["image"])
    assert task.collate([example])["pixel_values"].shape == (1, 3, 64, 64)
    assert example.cost == 16


def test_a_model_that_takes_no_other_size_refuses_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
    )
    ViTForImageClassification(config).save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    outline = ImageClassification.survey(numbered(digits(8)))

    made = ImageClassification(tmp_path, outline | {IMAGE_SIZE: 32}, CPU, None)
    assert made.collate([made.encode_input(digits(1)[0]["image"])])["pixel_values"].shape[2] == 32
    with pytest.raises(InvalidInput, match="takes no images of 64 x 64 pixels") as refused:
        ImageClassification(tmp_path, outline | {IMAGE_SIZE: 64}, CPU, None)
    assert refused.value.param == "tunesmith.training.image_size"
