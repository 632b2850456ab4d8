"""Images: the head, the loss, answers as the pipeline gives them, and what is learnt."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    ImageClassificationPipeline,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from app.domain.errors import InvalidInput, TrainingFailed
from app.domain.job_spec import AdapterSpec
from app.storage.local import LocalStorage
from tests.support.datasets import as_zip, digits, solar_cells
from tests.tasks.conftest import (
    FindModel,
    RunTask,
    answered,
    encoded,
    judged,
    loss_of,
    make_task,
    task_spec,
    validations,
)
from worker.evaluation.measure import values
from worker.tasks import LossOptions
from worker.tuning import Tuning
from worker.tuning.making import make_tuning

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

TASK = "image-classification"
RANK_8 = AdapterSpec(options={"r": 8})

AtSize = Callable[[int], Path]


@pytest.fixture(scope="module")
def efficientnet(find_model: FindModel, tmp_path_factory: pytest.TempPathFactory) -> AtSize:
    """Return the base model with a processor of so many pixels a side, which take less time."""
    directory = find_model("efficientnet-lite0")

    def at_size(pixels: int) -> Path:
        smaller = tmp_path_factory.mktemp("efficientnet")
        for file in directory.iterdir():
            (smaller / file.name).symlink_to(file)
        path = smaller / "preprocessor_config.json"
        config = json.loads(path.read_text())
        config |= {"size": {"height": pixels, "width": pixels}, "do_center_crop": False}
        path.unlink()
        path.write_text(json.dumps(config))
        return smaller

    return at_size


@pytest.fixture(scope="module")
def classifier(find_model: FindModel) -> Any:
    return make_task(TASK, find_model("efficientnet-lite0"), digits(30))


def test_answers_are_those_of_the_pipeline(classifier: Any) -> None:
    pipeline: Any = ImageClassificationPipeline
    reference = pipeline(model=classifier.model, image_processor=classifier._processor, device=-1)
    url = digits(1)[0]["image"]
    image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))

    for parameters in (
        {},
        {"top_k": 2},
        {"top_k": 100},
        {"function_to_apply": "sigmoid"},
        {"function_to_apply": "none"},
    ):
        expected = reference(image, **parameters)
        found = answered(classifier, url, **parameters)
        assert [one["label"] for one in found] == [one["label"] for one in expected]
        assert [one["score"] for one in found] == pytest.approx(
            [one["score"] for one in expected], rel=1e-4
        )
    assert len(answered(classifier, url)) == 5
    assert len(answered(classifier, url, top_k=None)) == 10


def test_the_loss_is_that_of_transformers(classifier: Any) -> None:
    batch = classifier.collate(encoded(classifier, digits(5)))

    found = loss_of(classifier, batch)

    with torch.no_grad():
        expected = classifier.model(**batch).loss
    assert batch["pixel_values"].shape == (5, 3, 224, 224)
    assert float(found.sums.sum() / found.weights.sum()) == pytest.approx(float(expected), rel=1e-6)


def test_classes_are_weighted_as_torch_does(classifier: Any) -> None:
    batch = classifier.collate(encoded(classifier, digits(5)))
    weights = torch.linspace(0.1, 2.0, 10)

    found = loss_of(classifier, batch, class_weights=weights)

    with torch.no_grad():
        logits = classifier.model(batch["pixel_values"]).logits
    expected = torch.nn.CrossEntropyLoss(weight=weights)(logits, batch["labels"])
    assert float(found.sums.sum() / found.weights.sum()) == pytest.approx(float(expected), rel=1e-5)


def test_an_image_costs_its_patches(classifier: Any) -> None:
    (example, *_) = encoded(classifier, digits(1))

    assert example.cost == 14 * 14
    assert example.excerpt == "image of 64 x 64 pixels"
    assert example.features["image"].startswith(b"\x89PNG")


def test_scores_and_worst_rows(classifier: Any) -> None:
    examples = encoded(classifier, digits(4))
    logits = torch.zeros(4, 10)
    for row, example in zip(logits[:3], examples, strict=False):
        row[example.target] = 5.0
    wrong = (examples[3].target + 1) % 10
    logits[3, wrong] = 5.0

    found = values(classifier.score(judged(examples, list(logits))))
    worst = classifier.worst(judged(examples, list(logits)))[0]

    assert found["accuracy"] == 0.75
    assert (worst.expected, worst.predicted) == (str(examples[3].target), str(wrong))
    assert worst.confidence == pytest.approx(float(logits[3].softmax(0).max()))


def vit() -> Any:
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=32,
            patch_size=8,
            num_labels=3,
        )
    )


def resnet() -> Any:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], num_labels=3)
    return ResNetForImageClassification(config)


def convnext() -> Any:
    config = ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=3)
    return ConvNextForImageClassification(config)


@pytest.mark.parametrize("num_labels", [2, 3])
@pytest.mark.parametrize(
    ("make", "adapted"),
    [
        (vit, {"query", "key", "value", "dense", "q_proj", "k_proj", "v_proj", "o_proj", "fc1"}),
        (resnet, {"convolution"}),
        (convnext, {"pwconv1", "pwconv2"}),
    ],
)
def test_other_kinds_of_model_learn_too(
    make: Callable[[], Any],
    adapted: set[str],
    num_labels: int,
    storage: LocalStorage,
    tmp_path: Path,
) -> None:
    """The head is trained whole, whether its size was right or not; of the rest, the adapter."""
    make().save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    records = [one | {"label": f"{int(one['label']) % num_labels}"} for one in digits(8)]
    task = make_task(TASK, tmp_path, records)

    spec = task_spec(storage, TASK, records, adapter=RANK_8)
    tuning: Tuning = make_tuning(spec, task, 1)
    names = [name for group in tuning.groups() for name, _ in group.weights]
    loss = task.loss(tuning.model, task.collate(encoded(task, records)), LossOptions()).sums.sum()
    loss.backward()

    heads = {name for name in names if "modules_to_save" in name}
    layers = {name.split(".lora_")[0].rpartition(".")[2] for name in names if ".lora_" in name}
    assert task.head_modules == ("classifier",)
    assert len(heads) == 2
    assert len(heads) + len([name for name in names if ".lora_" in name]) == len(names)
    assert layers & adapted
    assert all(weight.grad is not None for group in tuning.groups() for _, weight in group.weights)


def test_learns_from_little(run_task: RunTask, storage: LocalStorage, efficientnet: AtSize) -> None:
    records = digits(280)
    spec = task_spec(
        storage,
        TASK,
        as_zip(records[:200], "image"),
        records[200:],
        adapter=RANK_8,
        num_epochs=2,
        batch_size=16,
        learning_rate=3e-3,
    )

    attempt = run_task(spec, efficientnet(64))

    before, _, after = validations(attempt, "accuracy")
    assert before < 0.25
    assert after > 0.55


@pytest.mark.slow
def test_reads_digits(run_task: RunTask, storage: LocalStorage, efficientnet: AtSize) -> None:
    records = digits(1_500)
    spec = task_spec(
        storage,
        TASK,
        records[:1_000],
        records[1_000:],
        adapter=RANK_8,
        num_epochs=2,
        batch_size=32,
        learning_rate=3e-3,
    )

    assert validations(run_task(spec, efficientnet(64)), "accuracy")[-1] >= 0.93


@pytest.mark.slow
def test_finds_broken_solar_cells(
    run_task: RunTask, storage: LocalStorage, efficientnet: AtSize
) -> None:
    """Of the cells, 67 % are functional."""
    records = solar_cells(1_700, pixels=128)
    spec = task_spec(
        storage,
        TASK,
        records[:1_200],
        records[1_200:],
        adapter=RANK_8,
        num_epochs=2,
        batch_size=32,
        learning_rate=3e-3,
    )

    assert validations(run_task(spec, efficientnet(128)), "accuracy")[-1] >= 0.80


def test_a_broken_image_is_named_by_its_line(
    run_task: RunTask, storage: LocalStorage, efficientnet: AtSize
) -> None:
    first, second = digits(2)
    header, _, content = second["image"].partition(",")
    whole = base64.b64decode(content)
    cut = base64.b64encode(whole[: len(whole) // 2]).decode()
    broken = {"image": f"{header},{cut}", "label": second["label"]}

    with pytest.raises(TrainingFailed, match="line 2: this is no PNG") as error:
        run_task(task_spec(storage, TASK, [first, broken]), efficientnet(64))
    assert error.value.param == "training_file"


def test_refuses_a_broken_input(classifier: Any) -> None:
    for value in ("https://example.org/cat.png", base64.b64encode(b"no image").decode()):
        with pytest.raises(InvalidInput) as error:
            classifier.encode_input(value)
        assert error.value.param == "inputs"


@pytest.mark.parametrize("parameters", [{"top_k": 0}, {"function_to_apply": "max"}, {"k": 3}])
def test_refuses_a_wrong_parameter(classifier: Any, parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as error:
        answered(classifier, digits(1)[0]["image"], **parameters)
    assert str(error.value.param).startswith("parameters")


def test_refuses_an_unknown_label(classifier: Any) -> None:
    with pytest.raises(InvalidInput, match="'cat' is not among those trained on: 0, 1, 2"):
        encoded(classifier, [digits(1)[0] | {"label": "cat"}])


def test_refuses_a_file_with_one_label() -> None:
    with pytest.raises(InvalidInput, match="all records have the label '7'"):
        make_task(TASK, Path(), [digits(1)[0] | {"label": "7"}])
