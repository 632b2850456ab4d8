"""Token classification: the entities in a text, each a run of words with a label.

Records are words with BIO tags, or a text with spans of characters. Both become words in a text
with one tag each, which is learnt and judged at the first token of the word; a text to be answered
is plain in either case. Long texts are seen in windows, and nothing of them is lost.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from math import sqrt
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForTokenClassification, TokenClassificationPipeline
from transformers.pipelines.token_classification import AggregationStrategy

from app.domain.datasets import Record, TaggedTokensRecord, TextSpansRecord
from app.domain.errors import InvalidInput
from app.domain.job_spec import JobSpec
from worker.evaluation import entities
from worker.evaluation.measure import Scored
from worker.evaluation.worst_rows import WorstRow, worst_rows
from worker.tasks import Batch, Example, Judged, LossOptions, Outline, TaskLoss
from worker.tasks.loading import load_tokenizer, load_with_head, padded
from worker.tasks.requests import checked, text_of
from worker.tasks.tagging import OUTSIDE, Word, first_tokens, tags_of_spans, words_of
from worker.tasks.windows import (
    OWNERS,
    Window,
    collate_windows,
    longest_input,
    outputs_of,
    sums_by_owner,
    windows_of,
)
from worker.trunk.device import DeviceProfile

IGNORED = -100
_SHARE_OF_OVERLAP = 4


class TaggingParameters(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Parameters of a prediction.

    Attributes:
        aggregation_strategy: how tokens are joined to entities, in the words of transformers.
    """

    aggregation_strategy: Literal["none", "simple", "first", "average", "max"] = "simple"


class TokenClassification:
    """See `tasks.Task`. The outline holds the tags, and the weight of `O` in training.

    Mostly words are outside any entity, and a model that says so of every word has a low loss and
    finds nothing. Unless classes are weighted by wish, `O` is weighted by the square root of what
    all other tags come to over what it comes to itself, at most 1: half way, on a log scale,
    between no weight and the same share for both, which finds the most and is wrong the most.
    Judging weighs all words alike.
    """

    peft_task_type = "TOKEN_CLS"
    is_batch_whole = False

    def __init__(
        self, directory: Path, outline: Outline, profile: DeviceProfile, spec: JobSpec | None
    ) -> None:
        self.labels: Sequence[str] = outline["labels"]
        self.outside_weight: float = outline["outside_weight"]
        self.tokenizer = load_tokenizer(directory)
        self.model, self.head_modules = load_with_head(
            AutoModelForTokenClassification,
            directory,
            profile,
            num_labels=len(self.labels),
            id2label=dict(enumerate(self.labels)),
            label2id={name: number for number, name in enumerate(self.labels)},
        )
        self._longest = longest_input(self.model, self.tokenizer)
        self._ids = {tag: number for number, tag in enumerate(self.labels)}

    @staticmethod
    def survey(records: Iterable[tuple[int, Record]]) -> dict[str, Any]:
        names: set[str] = set()
        outside = inside = 0
        for _, record in records:
            found, num_inside, num_words = _counts(record)
            names |= found
            inside += num_inside
            outside += num_words - num_inside
        if not names:
            raise InvalidInput("no record has an entity: there is nothing to be found")
        labels = [OUTSIDE, *(f"{bound}-{name}" for name in sorted(names) for bound in "BI")]
        weight = min(1.0, sqrt(max(inside, 1) / max(outside, 1)))
        return {"labels": labels, "outside_weight": weight}

    def encode(self, record: Record, max_length_tokens: int) -> Example | Sequence[Example]:
        """Return a record as an example; nothing, if no word of it has a token.

        Raises:
            InvalidInput: it has a tag that was not trained on.
        """
        longest = min(max_length_tokens, self._longest)
        if isinstance(record, TaggedTokensRecord):
            text = " ".join(record.tokens)
            windows = self._windows(text, longest)
            words, start = list[Word](), 0
            for token in record.tokens:
                words.append((start, start + len(token)))
                start += len(token) + 1
            tags: Sequence[str] = record.tags
        else:
            assert isinstance(record, TextSpansRecord)
            text = record.text
            windows = self._windows(text, longest)
            words = words_of(windows)
            tags = tags_of_spans(
                words, [(one.start, one.end, one.label) for one in record.entities]
            )
        target = [self._id(tag) for tag in tags]
        firsts = first_tokens(windows, words)
        if not any(first is not None for first in firsts):
            return []
        return self._example(text, windows, target=target, words=words, firsts=firsts)

    def encode_input(self, value: Any) -> Example:
        text = text_of(value)
        return self._example(text, self._windows(text, self._longest))

    def collate(self, examples: Sequence[Example]) -> Batch:
        windows = [example.features["windows"] for example in examples]
        batch = collate_windows(windows, self.tokenizer.pad_token_id)
        rows = [window for each in windows for window in each]
        batch["is_own"] = padded([_is_own(window) for window in rows], 0).bool()
        if examples[0].target is not None:
            labels = [row for example in examples for row in _label_rows(example)]
            batch["labels"] = padded(labels, IGNORED)
        return batch

    def loss(self, model: nn.Module, batch: Batch, options: LossOptions) -> TaskLoss:
        (logits,) = outputs_of(model, batch, "logits")
        weights = options.class_weights
        if weights is None and model.training:
            weights = torch.ones(len(self.labels))
            weights[0] = self.outside_weight
        if weights is not None:
            weights = weights.to(logits.device)
        labels = batch["labels"]
        sums = cross_entropy(
            logits.transpose(1, 2),
            labels,
            weight=weights,
            ignore_index=IGNORED,
            reduction="none",
            label_smoothing=options.label_smoothing,
        ).sum(dim=1)
        is_learnt = (labels != IGNORED).float()
        if weights is not None:
            is_learnt = is_learnt * weights[labels.clamp(min=0)]
        return TaskLoss(
            sums_by_owner(sums, batch[OWNERS]), sums_by_owner(is_learnt.sum(dim=1), batch[OWNERS])
        )

    def predict(self, model: nn.Module, batch: Batch) -> list[Any]:
        """Return the logits of all tokens of each text [tokens, tags] float32."""
        (logits,) = outputs_of(model, batch, "logits")
        counts = sums_by_owner(batch["is_own"].sum(dim=1), batch[OWNERS]).tolist()
        return list(torch.split(logits[batch["is_own"]].cpu(), counts))

    def answer(self, example: Example, prediction: Any, parameters: Mapping[str, Any]) -> Any:
        strategy = checked(TaggingParameters, parameters).aggregation_strategy
        windows: Sequence[Window] = example.features["windows"]
        # As one sequence, with the special tokens of the first window before it: a token's `index`
        # then is that of the pipeline.
        before = windows[0].own.start
        own = [(window, at) for window in windows for at in window.own]
        ids = [0] * before + [window.inputs["input_ids"][at] for window, at in own]
        offsets = [(0, 0)] * before + [window.offsets[at] for window, at in own]
        outputs = {
            "logits": torch.cat([torch.zeros(before, len(self.labels)), prediction])[None],
            "sentence": example.features["text"],
            "input_ids": torch.tensor([ids]),
            "offset_mapping": [offsets],
            "special_tokens_mask": torch.tensor([[1] * before + [0] * len(own)]),
        }
        found = self._pipeline.postprocess([outputs], AggregationStrategy[strategy.upper()])
        return [{name: _plain(value) for name, value in one.items()} for one in found]

    def score(self, judged: Judged) -> Scored:
        truths, predictions = self._tags(judged)
        return entities.score(
            [entities.entities_of_tags(tags) for tags in truths],
            [entities.entities_of_tags(tags) for tags in predictions],
        )

    def worst(self, judged: Judged) -> tuple[WorstRow, ...]:
        truths, predictions = self._tags(judged)
        return worst_rows(
            [example.line for example in judged.examples],
            judged.losses,
            [_told(*pair) for pair in zip(judged.examples, truths, strict=True)],
            [_told(*pair) for pair in zip(judged.examples, predictions, strict=True)],
            [example.excerpt for example in judged.examples],
        )

    @cached_property
    def _pipeline(self) -> Any:
        """What transformers makes of a model's outputs; the model is not run by it."""
        make: Any = TokenClassificationPipeline
        return make(model=self.model, tokenizer=self.tokenizer, device=self.model.device)

    def _windows(self, text: str, longest: int) -> list[Window]:
        return windows_of(self.tokenizer, text, longest, longest // _SHARE_OF_OVERLAP)

    def _example(
        self, text: str, windows: Sequence[Window], target: Any = None, **features: Any
    ) -> Example:
        return Example(
            features={"text": text, "windows": windows, **features},
            target=target,
            cost=len(windows) * max(map(len, windows)),
            excerpt=text,
        )

    def _id(self, tag: str) -> int:
        if tag not in self._ids:
            known = ", ".join(dict.fromkeys(tag[2:] for tag in self.labels[1:21]))
            raise InvalidInput(f"label {tag[2:]!r} is not among those trained on: {known}")
        return self._ids[tag]

    def _tags(self, judged: Judged) -> tuple[list[list[str]], list[list[str]]]:
        """Return the true and the predicted tags of each example's words."""
        truths = [[self.labels[tag] for tag in example.target] for example in judged.examples]
        predictions = []
        for example, logits in zip(judged.examples, judged.predictions, strict=True):
            of_token = logits.argmax(dim=1).tolist()
            # A word that the tokenizer knows nothing of is in no entity.
            firsts = example.features["firsts"]
            predictions.append(
                [OUTSIDE if at is None else self.labels[of_token[at]] for at in firsts]
            )
        return truths, predictions


def _counts(record: Record) -> tuple[set[str], int, int]:
    """Return the labels in a record, how many words are in entities, and how many there are."""
    if isinstance(record, TaggedTokensRecord):
        tags = [tag for tag in record.tags if tag != OUTSIDE]
        return {tag[2:] for tag in tags}, len(tags), len(record.tags)
    assert isinstance(record, TextSpansRecord)
    inside = sum(len(record.text[one.start : one.end].split()) for one in record.entities)
    names = {one.label for one in record.entities}
    return names, inside, max(inside, len(record.text.split()))


def _is_own(window: Window) -> list[int]:
    return [int(at in window.own) for at in range(len(window))]


def _label_rows(example: Example) -> list[list[int]]:
    """Return the labels of each window's tokens, those of first tokens of words."""
    windows: Sequence[Window] = example.features["windows"]
    rows = [[IGNORED] * len(window) for window in windows]
    places = [(row, at) for row, window in zip(rows, windows, strict=True) for at in window.own]
    for first, tag in zip(example.features["firsts"], example.target, strict=True):
        if first is not None:
            row, at = places[first]
            row[at] = tag
    return rows


def _told(example: Example, tags: Sequence[str]) -> str:
    text, words = example.features["text"], example.features["words"]
    return (
        "; ".join(
            f"{label}: {text[words[start][0] : words[stop - 1][1]]}"
            for start, stop, label in entities.entities_of_tags(tags)
        )
        or "none"
    )


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic | Tensor) else value
