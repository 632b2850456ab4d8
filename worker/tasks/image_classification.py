"""Image classification: one label for an image."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

from app.domain.datasets import LabelledImageRecord, Record
from app.domain.errors import InvalidInput
from app.domain.job_spec import JobSpec
from worker.evaluation.classification import score_single_label
from worker.evaluation.measure import Scored
from worker.evaluation.worst_rows import WorstRow, suspects, worst_rows
from worker.tasks import IMAGE_SIZE, Batch, Example, Judged, LossOptions, Outline, TaskLoss
from worker.tasks.labels import ordered_labels
from worker.tasks.loading import load_with_head
from worker.tasks.media import decode_image, media_bytes
from worker.tasks.requests import checked
from worker.trunk.device import DeviceProfile

# Squares of so many pixels a side are what most vision transformers take for a token.
_PATCH_PIXELS = 16


class ImageParameters(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Parameters of a prediction.

    Attributes:
        top_k: how many labels, the likeliest first; None is all of them.
        function_to_apply: what makes scores of the model's outputs.
    """

    top_k: Annotated[int, msgspec.Meta(ge=1)] | None = 5
    function_to_apply: Literal["none", "softmax", "sigmoid"] = "softmax"


class ImageClassification:
    """See `tasks.Task`. The outline holds the labels, and the size of images if it was chosen.

    Examples hold images as they were encoded, which takes far less than their pixels: they are
    decoded once to be checked, and again whenever a batch is made.
    """

    peft_task_type = None
    is_batch_whole = False

    def __init__(
        self, directory: Path, outline: Outline, profile: DeviceProfile, spec: JobSpec | None
    ) -> None:
        self.labels: Sequence[str] = outline["labels"]
        self.model, untrained = load_with_head(
            AutoModelForImageClassification,
            directory,
            profile,
            num_labels=len(self.labels),
            id2label=dict(enumerate(self.labels)),
            label2id={name: number for number, name in enumerate(self.labels)},
        )
        self.head_modules = _head(self.model, untrained)
        self._ids = {label: number for number, label in enumerate(self.labels)}
        self._processor = _load_processor(directory)
        size = outline.get(IMAGE_SIZE)
        if size is not None:
            _resize(self._processor, size)
        pixels = self._pixels([Image.new("RGB", (_PATCH_PIXELS, _PATCH_PIXELS))])
        if size is not None:
            self._try_out(pixels)
        height, width = pixels.shape[2:]
        self._cost = -(-height // _PATCH_PIXELS) * -(-width // _PATCH_PIXELS)

    @staticmethod
    def survey(records: Iterable[tuple[int, Record]]) -> dict[str, Any]:
        names: set[str] = set()
        for _, record in records:
            assert isinstance(record, LabelledImageRecord)
            names.add(record.label)
        if len(names) < 2:
            raise InvalidInput(
                f"all records have the label {', '.join(names)!r}: at least two are to be told "
                "apart"
            )
        return {"labels": ordered_labels(names)}

    def encode(self, record: Record, max_length_tokens: int) -> Example:
        assert isinstance(record, LabelledImageRecord)
        if record.label not in self._ids:
            known = ", ".join(self.labels[:20])
            raise InvalidInput(f"label {record.label!r} is not among those trained on: {known}")
        return self._example(record.image, self._ids[record.label], "image")

    def encode_input(self, value: Any) -> Example:
        return self._example(media_bytes(value, "image", "inputs"), None, "inputs")

    def collate(self, examples: Sequence[Example]) -> Batch:
        images = [decode_image(example.features["image"], "image") for example in examples]
        batch = {"pixel_values": self._pixels(images)}
        if examples[0].target is not None:
            batch["labels"] = torch.tensor([example.target for example in examples])
        return batch

    def loss(self, model: nn.Module, batch: Batch, options: LossOptions) -> TaskLoss:
        logits, labels = self._logits(model, batch), batch["labels"]
        weights = torch.ones(len(labels), device=logits.device)
        if options.class_weights is not None:
            weights = options.class_weights.to(logits.device)[labels]
        sums = cross_entropy(
            logits, labels, reduction="none", label_smoothing=options.label_smoothing
        )
        return TaskLoss(sums * weights, weights)

    def predict(self, model: nn.Module, batch: Batch) -> list[Any]:
        """Return the logits [classes] float32 of each image."""
        return list(self._logits(model, batch).cpu())

    def answer(self, example: Example, prediction: Any, parameters: Mapping[str, Any]) -> Any:
        chosen = checked(ImageParameters, parameters)
        scores: Tensor = prediction
        if chosen.function_to_apply == "softmax":
            scores = prediction.softmax(dim=0)
        elif chosen.function_to_apply == "sigmoid":
            scores = prediction.sigmoid()
        pairs = sorted(zip(self.labels, scores.tolist(), strict=True), key=lambda pair: -pair[1])
        return [{"label": label, "score": score} for label, score in pairs[: chosen.top_k]]

    def score(self, judged: Judged) -> Scored:
        targets = [example.target for example in judged.examples]
        return score_single_label(self.labels, targets, _probabilities(judged))

    def worst(self, judged: Judged) -> tuple[WorstRow, ...]:
        targets = [example.target for example in judged.examples]
        probabilities = _probabilities(judged)
        return worst_rows(
            [example.line for example in judged.examples],
            judged.losses,
            [self.labels[target] for target in targets],
            [self.labels[one.index(max(one))] for one in probabilities],
            [example.excerpt for example in judged.examples],
            confidences=[max(one) for one in probabilities],
            is_suspect=suspects(targets, probabilities),
        )

    def _example(self, content: bytes, target: int | None, field: str) -> Example:
        image = decode_image(content, field)
        return Example(
            features={"image": content},
            target=target,
            cost=self._cost,
            excerpt=f"image of {image.width} x {image.height} pixels",
        )

    @torch.no_grad()
    def _try_out(self, pixels: Tensor) -> None:
        """Compute one image. Raises: InvalidInput, if the model takes its own size only."""
        device = next(self.model.parameters()).device
        was_training = self.model.training
        try:
            self._logits(self.model.train(False), {"pixel_values": pixels.to(device)})
        except (ValueError, RuntimeError) as error:
            raise InvalidInput(
                f"the base model takes no images of {pixels.shape[2]} x {pixels.shape[3]} pixels: "
                f"{error}",
                param="tunesmith.training.image_size",
            ) from error
        finally:
            self.model.train(was_training)

    def _pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Return [images, 3, height, width] float32, as the model takes them."""
        pixels: Tensor = self._processor(images=list(images), return_tensors="pt")["pixel_values"]
        return pixels

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        logits: Tensor = model(pixel_values=batch["pixel_values"].to(self.model.dtype)).logits
        return logits.float()


def _load_processor(directory: Path) -> Any:
    try:
        # Pillow's results do not depend on the device, and it is here anyway.
        return AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            directory, local_files_only=True, trust_remote_code=False, backend="pil"
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InvalidInput(f"the base model's image processor cannot be loaded: {error}") from error


def _resize(processor: Any, pixels: int) -> None:
    """Let a processor make squares of so many pixels a side; what it cuts off stays as much."""
    square = {"height": pixels, "width": pixels}
    if not getattr(processor, "do_center_crop", False):
        processor.size = square
        return
    factor = pixels / dict(processor.crop_size)["height"]
    processor.size = {
        name: round(edge * factor) for name, edge in dict(processor.size).items() if edge
    }
    processor.crop_size = square


def _head(model: PreTrainedModel, untrained: Sequence[str]) -> tuple[str, ...]:
    """Return the modules to train whole: those above the trunk, and what else has no weights yet.

    A head of the right size is loaded although its classes may be others: it is trained as well.
    """
    above = [
        name
        for name, module in model.named_children()
        if name != model.base_model_prefix and any(True for _ in module.parameters())
    ]
    rest = [name for name in untrained if name.partition(".")[0] not in above]
    return (*above, *rest)


def _probabilities(judged: Judged) -> list[list[float]]:
    found: list[list[float]] = torch.stack(list(judged.predictions)).softmax(dim=1).tolist()
    return found
