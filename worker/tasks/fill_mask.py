"""Fill-mask: masked language modelling, by which an encoder learns the language of a field.

A long text is cut into several examples, and nothing of it is lost.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from transformers import AutoModelForMaskedLM, FillMaskPipeline, PreTrainedModel

from app.domain.datasets import Record, TextRecord
from app.domain.errors import InvalidInput
from app.domain.job_spec import JobSpec
from worker.evaluation import language
from worker.evaluation.measure import Scored
from worker.evaluation.worst_rows import WorstRow, worst_rows
from worker.tasks import Batch, Example, Judged, LossOptions, Outline, TaskLoss
from worker.tasks.loading import load_tokenizer, load_with_head, padded
from worker.tasks.requests import checked, text_of
from worker.tasks.windows import Window, collate_windows, longest_input, outputs_of, windows_of
from worker.trunk.device import DeviceProfile

# As BERT was trained (Devlin et al. 2018, https://arxiv.org/abs/1810.04805): of the tokens, so
# many are to be predicted; of these, so many are hidden, and so many replaced by any other.
MASKED_SHARE = 0.15
HIDDEN_SHARE = 0.8
REPLACED_SHARE = 0.1

IGNORED = -100
_EXCERPT = 400


class FillMaskParameters(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Parameters of a prediction.

    Attributes:
        top_k: how many tokens for each mask, the likeliest first.
        targets: the only words that are asked for.
    """

    top_k: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 5
    targets: str | Annotated[list[str], msgspec.Meta(min_length=1, max_length=1000)] | None = None


@dataclass(frozen=True, slots=True)
class Filled:
    """What a model made of the masked tokens of a held-out example: ids, in order."""

    expected: Sequence[int]
    predicted: Sequence[int]


class FillMask:
    """See `tasks.Task`. The outline is empty.

    Which tokens are masked is drawn for each batch of training, from torch's generator, which the
    step seeds: so a record is masked differently in each epoch, and alike in a resumed run. In
    judging it depends on the tokens alone, so that two models, or two moments of one, are asked
    the same.

    A base model without such a head, as MiniLM is, gets one whose first part is trained; its last
    one is the model's own embeddings and stays as it is.
    """

    peft_task_type = None
    is_batch_whole = False

    def __init__(
        self, directory: Path, outline: Outline, profile: DeviceProfile, spec: JobSpec | None
    ) -> None:
        self.tokenizer = load_tokenizer(directory)
        if self.tokenizer.mask_token_id is None:
            raise InvalidInput("the base model has no mask token")
        self.model, untrained = load_with_head(AutoModelForMaskedLM, directory, profile)
        self.head_modules = _without_output_embeddings(self.model, untrained)
        self._longest = longest_input(self.model, self.tokenizer)
        self._vocabulary = min(len(self.tokenizer), int(self.model.config.vocab_size))

    @staticmethod
    def survey(records: Iterable[tuple[int, Record]]) -> dict[str, Any]:
        return {}

    def encode(self, record: Record, max_length_tokens: int) -> Example | Sequence[Example]:
        """Return the pieces of a text, one after another."""
        assert isinstance(record, TextRecord)
        longest = min(max_length_tokens, self._longest)
        windows = windows_of(self.tokenizer, record.text, longest, overlap=0)
        return [self._piece(record.text, window) for window in windows if window.own]

    def encode_input(self, value: Any) -> Example:
        mask = self.tokenizer.mask_token
        text = text_of(value, f"expected a text with {mask}")
        input_ids = self.tokenizer(text)["input_ids"]
        if self.tokenizer.mask_token_id not in input_ids:
            raise InvalidInput(
                f"the text has no {mask}, which is what is filled in", param="inputs"
            )
        if len(input_ids) > self._longest:
            raise InvalidInput(
                f"the text has {len(input_ids)} tokens; this model takes {self._longest}",
                param="inputs",
            )
        (window,) = windows_of(self.tokenizer, text, self._longest, overlap=0)
        return Example({"window": window}, None, cost=len(window), excerpt=text)

    def collate(self, examples: Sequence[Example]) -> Batch:
        windows: list[Window] = [example.features["window"] for example in examples]
        batch = collate_windows([[window] for window in windows], self.tokenizer.pad_token_id)
        if examples[0].target is not None:
            batch["is_own"] = padded(
                [[at in one.own for at in range(len(one))] for one in windows], 0
            )
            batch["fixed_seeds"] = torch.tensor([example.target for example in examples])
            batch["drawn_seeds"] = torch.randint(1 << 62, (len(examples),))
        return batch

    def loss(self, model: nn.Module, batch: Batch, options: LossOptions) -> TaskLoss:
        seeds = batch["drawn_seeds" if model.training else "fixed_seeds"]
        masked, labels = self._masked(batch, seeds)
        (logits,) = outputs_of(model, masked, "logits")
        sums = cross_entropy(
            logits.transpose(1, 2),
            labels,
            ignore_index=IGNORED,
            reduction="none",
            label_smoothing=options.label_smoothing,
        ).sum(dim=1)
        return TaskLoss(sums, (labels != IGNORED).sum(dim=1).float())

    def predict(self, model: nn.Module, batch: Batch) -> list[Any]:
        """Return the `Filled` of held-out examples; of inputs, the logits [masks, vocabulary]."""
        if "fixed_seeds" not in batch:
            (logits,) = outputs_of(model, batch, "logits")
            is_mask = batch["input_ids"] == self.tokenizer.mask_token_id
            return list(torch.split(logits[is_mask].cpu(), is_mask.sum(dim=1).tolist()))
        masked, labels = self._masked(batch, batch["fixed_seeds"])
        (logits,) = outputs_of(model, masked, "logits")
        found = []
        for row, of_row in zip(labels, logits.argmax(dim=2), strict=True):
            is_learnt = row != IGNORED
            found.append(Filled(row[is_learnt].tolist(), of_row[is_learnt].tolist()))
        return found

    def answer(self, example: Example, prediction: Any, parameters: Mapping[str, Any]) -> Any:
        chosen = checked(FillMaskParameters, parameters)
        targets = None
        if chosen.targets is not None:
            try:
                targets = self._pipeline.get_target_ids(chosen.targets)
            except ValueError as error:
                raise InvalidInput(
                    "'parameters.targets' has no word that the model knows",
                    param="parameters.targets",
                ) from error
        # What the model says is of the masks alone, and nothing else is looked at.
        input_ids = torch.tensor([example.features["window"].inputs["input_ids"]])
        logits = torch.empty(*input_ids.shape, prediction.shape[1])
        logits[input_ids == self.tokenizer.mask_token_id] = prediction
        outputs = {"input_ids": input_ids, "logits": logits}
        top_k = min(chosen.top_k, prediction.shape[1])
        return self._pipeline.postprocess(outputs, top_k=top_k, target_ids=targets)

    def score(self, judged: Judged) -> Scored:
        counts = [len(one.expected) for one in judged.predictions]
        hits = [
            sum(a == b for a, b in zip(one.expected, one.predicted, strict=True))
            for one in judged.predictions
        ]
        sums = [loss * count for loss, count in zip(judged.losses, counts, strict=True)]
        return language.score(sums, counts, hits)

    def worst(self, judged: Judged) -> tuple[WorstRow, ...]:
        return worst_rows(
            [example.line for example in judged.examples],
            judged.losses,
            [self._told(one.expected) for one in judged.predictions],
            [self._told(one.predicted) for one in judged.predictions],
            [example.excerpt for example in judged.examples],
        )

    @cached_property
    def _pipeline(self) -> Any:
        """What transformers makes of a model's outputs; the model is not run by it."""
        make: Any = FillMaskPipeline
        return make(model=self.model, tokenizer=self.tokenizer, device=self.model.device)

    def _piece(self, text: str, window: Window) -> Example:
        start = window.offsets[window.own[0]][0]
        digest = hashlib.sha256(repr(window.inputs["input_ids"]).encode()).digest()
        return Example(
            features={"window": window},
            target=int.from_bytes(digest[:7], "little"),
            cost=len(window),
            excerpt=text[start : start + _EXCERPT],
        )

    def _masked(self, batch: Batch, seeds: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return a batch with masked `input_ids`, and what stood there [examples, tokens] int64.

        Args:
            seeds: [examples] int64, each decides the masks of an example.
        """
        input_ids = batch["input_ids"]
        width, lengths = input_ids.shape[1], batch["attention_mask"].sum(dim=1).tolist()
        # Drawn on the CPU whatever the device, and for a text by itself: so what a seed means
        # depends neither on the one nor on what else is in the batch.
        rows = []
        for seed, length in zip(seeds.tolist(), lengths, strict=True):
            drawn = torch.rand((3, length), generator=torch.Generator().manual_seed(seed))
            rows.append(pad(drawn, (0, width - length)))
        chosen, treatment, replacement = torch.stack(rows).to(input_ids.device).unbind(dim=1)
        chosen = chosen.masked_fill(batch["is_own"] == 0, 2.0)
        # At least one: a text without any would be without a loss.
        is_masked = chosen <= chosen.min(dim=1, keepdim=True).values.clamp(min=MASKED_SHARE)
        labels = input_ids.masked_fill(~is_masked, IGNORED)
        is_hidden = is_masked & (treatment < HIDDEN_SHARE)
        is_replaced = is_masked & (treatment >= HIDDEN_SHARE)
        is_replaced &= treatment < HIDDEN_SHARE + REPLACED_SHARE
        found = input_ids.masked_fill(is_hidden, self.tokenizer.mask_token_id)
        others = (replacement * self._vocabulary).long().clamp(max=self._vocabulary - 1)
        return {**batch, "input_ids": torch.where(is_replaced, others, found)}, labels

    def _told(self, token_ids: Sequence[int]) -> str:
        return " | ".join(map(str, self.tokenizer.convert_ids_to_tokens(list(token_ids))))


def _without_output_embeddings(model: PreTrainedModel, modules: Sequence[str]) -> tuple[str, ...]:
    """Return modules without the one that gives the logits, and those that it is a part of.

    Its weights are those of the input embeddings: trained apart they would be a second copy of
    the largest matrix of the model.
    """
    output = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    paths = [path for path, module in model.named_modules() if module is output]
    return tuple(
        name
        for name in modules
        if not any(path == name or path.startswith(f"{name}.") for path in paths)
    )
