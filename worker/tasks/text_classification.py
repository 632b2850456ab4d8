"""Text classification: a label, any number of labels or a number for a text or a pair of texts."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import AutoModelForSequenceClassification

from app.domain.classes import class_name
from app.domain.datasets import LabelledTextRecord, Record
from app.domain.errors import InvalidInput
from app.domain.job_spec import Hyperparameters, JobSpec
from worker.evaluation import regression
from worker.evaluation.classification import score_multi_label, score_single_label
from worker.evaluation.measure import Scored
from worker.evaluation.worst_rows import WorstRow, suspects, worst_rows
from worker.tasks import Batch, Example, Judged, LossOptions, Outline, TaskLoss
from worker.tasks.labels import ordered_labels
from worker.tasks.loading import load_tokenizer, load_with_head, padded
from worker.tasks.requests import checked, text_and_pair
from worker.tasks.windows import longest_input
from worker.trunk.device import DeviceProfile

Problem = Literal["single_label", "multi_label", "regression"]

THRESHOLD = 0.5


class ClassificationParameters(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Parameters of a prediction.

    Attributes:
        top_k: how many labels, the likeliest first; None is all of them.
    """

    top_k: Annotated[int, msgspec.Meta(ge=1)] | None = 1


def _refuse_classes(chosen: Hyperparameters) -> None:
    for name in ("class_weights", "label_smoothing"):
        if getattr(chosen, name):
            raise InvalidInput(
                f"{name} is for classes; the labels of this file are numbers to be predicted",
                param=f"tunesmith.training.{name}",
            )


class TextClassification:
    """See `tasks.Task`. The outline says which of the three problems it is, and the labels."""

    peft_task_type = "SEQ_CLS"
    is_batch_whole = False

    def __init__(
        self, directory: Path, outline: Outline, profile: DeviceProfile, spec: JobSpec | None
    ) -> None:
        self.problem: Problem = outline["problem"]
        self.labels: Sequence[str] = outline["labels"]
        if spec is not None and self.problem == "regression":
            _refuse_classes(spec.hyperparameters)
        self.tokenizer = load_tokenizer(directory)
        names = self.labels or ["score"]
        self.model, self.head_modules = load_with_head(
            AutoModelForSequenceClassification,
            directory,
            profile,
            num_labels=len(names),
            id2label=dict(enumerate(names)),
            label2id={name: number for number, name in enumerate(names)},
        )
        self.model.config.pad_token_id = self.tokenizer.pad_token_id
        self._longest = longest_input(self.model, self.tokenizer)
        self._ids = {label: number for number, label in enumerate(self.labels)}

    @staticmethod
    def survey(records: Iterable[tuple[int, Record]]) -> dict[str, Any]:
        names: set[str] = set()
        problem: Problem = "single_label"
        for _, record in records:
            assert isinstance(record, LabelledTextRecord)
            if record.labels is not None:
                problem = "multi_label"
                names.update(record.labels)
            elif isinstance(record.label, float):
                return {"problem": "regression", "labels": []}
            else:
                names.add(class_name(record.label))
        if len(names) < (1 if problem == "multi_label" else 2):
            raise InvalidInput(
                f"all records have the label {', '.join(names)!r}: at least two are to be told "
                "apart"
            )
        return {"problem": problem, "labels": ordered_labels(names)}

    def encode(self, record: Record, max_length_tokens: int) -> Example:
        assert isinstance(record, LabelledTextRecord)
        longest = min(max_length_tokens, self._longest)
        return self._example(record.text, record.text_pair, self._target(record), longest)

    def encode_input(self, value: Any) -> Example:
        text, pair = text_and_pair(value)
        return self._example(text, pair, None, self._longest)

    def collate(self, examples: Sequence[Example]) -> Batch:
        rows = [example.features["input_ids"] for example in examples]
        batch = {
            "input_ids": padded(rows, self.tokenizer.pad_token_id or 0),
            "attention_mask": padded([[1] * len(row) for row in rows], 0),
        }
        if "token_type_ids" in examples[0].features:
            kinds = [example.features["token_type_ids"] for example in examples]
            batch["token_type_ids"] = padded(kinds, 0)
        if examples[0].target is not None:
            kind = torch.int64 if self.problem == "single_label" else torch.float32
            batch["labels"] = torch.tensor([example.target for example in examples], dtype=kind)
        return batch

    def loss(self, model: nn.Module, batch: Batch, options: LossOptions) -> TaskLoss:
        logits, labels = self._logits(model, batch), batch["labels"]
        weights = torch.ones(len(labels), device=logits.device)
        if self.problem == "single_label":
            sums = cross_entropy(
                logits, labels, reduction="none", label_smoothing=options.label_smoothing
            )
            if options.class_weights is not None:
                weights = options.class_weights.to(logits.device)[labels]
        elif self.problem == "multi_label":
            sums = binary_cross_entropy_with_logits(
                logits, labels, reduction="none", pos_weight=options.class_weights
            ).mean(dim=1)
        else:
            sums = (logits.squeeze(1) - labels) ** 2
        return TaskLoss(sums * weights, weights)

    def predict(self, model: nn.Module, batch: Batch) -> list[Any]:
        """Return the probabilities of all classes, or the number."""
        scores = self.scores(model, batch)
        found: list[Any] = (scores.squeeze(1) if self.problem == "regression" else scores).tolist()
        return found

    def scores(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return [examples, classes] float32, the probabilities; [examples, 1] of numbers."""
        logits = self._logits(model, batch)
        if self.problem == "regression":
            return logits
        return logits.softmax(dim=1) if self.problem == "single_label" else logits.sigmoid()

    def answer(self, example: Example, prediction: Any, parameters: Mapping[str, Any]) -> Any:
        chosen = checked(ClassificationParameters, parameters)
        if self.problem == "regression":
            return [{"label": "score", "score": prediction}]
        pairs = sorted(zip(self.labels, prediction, strict=True), key=lambda pair: -pair[1])
        return [{"label": label, "score": score} for label, score in pairs[: chosen.top_k]]

    def score(self, judged: Judged) -> Scored:
        targets = [example.target for example in judged.examples]
        if self.problem == "single_label":
            return score_single_label(self.labels, targets, judged.predictions)
        if self.problem == "multi_label":
            return score_multi_label(self.labels, targets, judged.predictions, THRESHOLD)
        return regression.score(targets, judged.predictions)

    def worst(self, judged: Judged) -> tuple[WorstRow, ...]:
        is_single = self.problem == "single_label"
        targets = [example.target for example in judged.examples]
        return worst_rows(
            [example.line for example in judged.examples],
            judged.losses,
            [self._told(target, is_target=True) for target in targets],
            [self._told(prediction, is_target=False) for prediction in judged.predictions],
            [example.excerpt for example in judged.examples],
            confidences=[max(one) for one in judged.predictions] if is_single else None,
            is_suspect=suspects(targets, judged.predictions) if is_single else None,
        )

    def _example(self, text: str, pair: str | None, target: Any, longest: int) -> Example:
        encoding = self.tokenizer(text, pair, truncation=True, max_length=longest)
        input_ids = encoding["input_ids"]
        # Whether it was cut is known only where it is as long as it may be.
        is_full = len(input_ids) == longest
        is_truncated = is_full and len(self.tokenizer(text, pair)["input_ids"]) > longest
        return Example(
            features=dict(encoding),
            target=target,
            cost=len(input_ids),
            excerpt=text if pair is None else f"{text} | {pair}",
            is_truncated=is_truncated,
        )

    def _target(self, record: LabelledTextRecord) -> Any:
        if self.problem == "regression":
            if not isinstance(record.label, float):
                raise InvalidInput("'label' must be a number with a fraction, as in training")
            return record.label
        if self.problem == "multi_label":
            if record.labels is None:
                raise InvalidInput("'labels' is missing; this model gives any number of labels")
            held = {self._id(name) for name in record.labels}
            return [float(number in held) for number in range(len(self.labels))]
        return self._id(class_name(record.label))

    def _id(self, name: str) -> int:
        if name not in self._ids:
            known = ", ".join(self.labels[:20])
            raise InvalidInput(f"label {name!r} is not among those trained on: {known}")
        return self._ids[name]

    def _told(self, value: Any, *, is_target: bool) -> str:
        if self.problem == "regression":
            return f"{value:.4g}"
        if self.problem == "single_label":
            chosen: str = self.labels[value if is_target else value.index(max(value))]
            return chosen
        held = [label for label, one in zip(self.labels, value, strict=True) if one >= THRESHOLD]
        return ", ".join(held) or "none"

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        logits: Tensor = model(**inputs).logits
        return logits.float()
