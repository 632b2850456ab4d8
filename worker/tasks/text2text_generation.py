"""Text-to-text generation: a source text becomes a target text, as in translating or summing up.

The model is an encoder-decoder: T5, BART, Marian and their kin, or two encoders joined.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from app.domain.datasets import CompletionRecord, Record
from app.domain.job_spec import JobSpec
from worker.evaluation import generation, language
from worker.evaluation.measure import Scored, joined
from worker.evaluation.worst_rows import WorstRow, worst_rows
from worker.tasks import Batch, Example, Judged, LossOptions, Outline, TaskLoss
from worker.tasks.generation_input import GenerationInput, as_row, from_row, generation_input
from worker.tasks.loading import load_tokenizer, load_with_head, padded
from worker.tasks.requests import checked
from worker.tasks.windows import longest_input
from worker.trunk.device import DeviceProfile

_IGNORED = -100

# What a text that is only judged may be longer than the true one: a model that repeats itself for
# ever is as wrong after twice the length.
_EXCESS_FACTOR, _EXCESS_TOKENS = 2, 8


class GenerationParameters(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Parameters of a prediction: there are none beside those in each input."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be generated.

    Attributes:
        token_ids: with the one that ends it, unless it was cut.
    """

    text: str
    token_ids: list[int]


class Text2TextGeneration:
    """See `tasks.Task`. The data decide nothing of the model: the outline is empty.

    In a model that was joined from two encoders, the attention from one to the other is something
    that neither had: it is trained whole, beside the adapter of everything else.

    An input is a text, or a `GenerationInput`, whose options decide how it is generated.
    """

    peft_task_type = "SEQ_2_SEQ_LM"
    is_batch_whole = False

    def __init__(
        self, directory: Path, outline: Outline, profile: DeviceProfile, spec: JobSpec | None
    ) -> None:
        self.tokenizer = load_tokenizer(directory)
        self.model, untrained = load_with_head(AutoModelForSeq2SeqLM, directory, profile)
        self.head_modules = (*untrained, *_joints(self.model))
        # Every call says how many tokens it wants.
        self.model.generation_config.max_length = None
        anything: Any = self.model
        self._longest_source = longest_input(anything.get_encoder(), self.tokenizer)
        self._longest_target = longest_input(anything.get_decoder(), self.tokenizer)

    @staticmethod
    def survey(records: Iterable[tuple[int, Record]]) -> dict[str, Any]:
        return {}

    def encode(self, record: Record, max_length_tokens: int) -> Example:
        assert isinstance(record, CompletionRecord)
        target = self.tokenizer(text_target=record.completion)["input_ids"]
        room = min(max_length_tokens, self._longest_target)
        source = self._example(record.prompt, min(max_length_tokens, self._longest_source))
        return Example(
            features=source.features,
            # Cut by hand: one that is cut has no end, or else the model would learn to stop there.
            target=Target(record.completion, target[:room]),
            cost=source.cost + min(len(target), room),
            excerpt=record.prompt,
            is_truncated=source.is_truncated or len(target) > room,
        )

    def encode_input(self, value: Any) -> Example:
        chosen = generation_input(value)
        example = self._example(chosen.text, self._longest_source)
        options = {"options": as_row(chosen)}
        return replace(example, features={**example.features, **options})

    def collate(self, examples: Sequence[Example]) -> Batch:
        rows = [example.features["input_ids"] for example in examples]
        batch = {
            "input_ids": padded(rows, self.tokenizer.pad_token_id or 0),
            "attention_mask": padded([[1] * len(row) for row in rows], 0),
        }
        if examples[0].target is None:
            options = [example.features["options"] for example in examples]
            return {**batch, "options": torch.tensor(options, dtype=torch.float64)}
        labels = padded([example.target.token_ids for example in examples], _IGNORED)
        return {**batch, "labels": labels, "decoder_input_ids": self._shifted(labels)}

    def loss(self, model: nn.Module, batch: Batch, options: LossOptions) -> TaskLoss:
        labels = batch["labels"]
        # The model is not given the labels: it would compute a loss of its own beside.
        logits: Tensor = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            decoder_input_ids=batch["decoder_input_ids"],
        ).logits
        sums = cross_entropy(
            logits.float().transpose(1, 2),
            labels,
            ignore_index=_IGNORED,
            reduction="none",
            label_smoothing=options.label_smoothing,
        ).sum(dim=1)
        return TaskLoss(sums, (labels != _IGNORED).sum(dim=1).float())

    def predict(self, model: nn.Module, batch: Batch) -> list[Any]:
        """Return a text for each example.

        What is only judged is the likeliest text token by token, up to twice the length of the
        true one: so that its cost is bounded, and it does not depend on the batch.
        """
        if "labels" in batch:
            lengths = (batch["labels"] != _IGNORED).sum(dim=1)
            limits = (_EXCESS_FACTOR * lengths + _EXCESS_TOKENS).clamp(max=self._longest_target - 1)
            longest = int(limits.max())
            judged = {"num_beams": 1, "do_sample": False, "min_length": 0}
            token_ids = self._generate(model, batch, max_new_tokens=longest, **judged)
            # The first token is the one that starts it all.
            cut = [row[: limit + 1] for row, limit in zip(token_ids, limits.tolist(), strict=True)]
            return self._texts(cut)
        texts: list[Any] = [""] * len(batch["input_ids"])
        for rows in _alike(batch["options"].tolist()):
            part = {name: batch[name][rows] for name in ("input_ids", "attention_mask")}
            chosen = from_row(batch["options"][rows[0]].tolist())
            for row, text in zip(rows, self._answers(model, part, chosen), strict=True):
                texts[row] = text
        return texts

    def answer(self, example: Example, prediction: Any, parameters: Mapping[str, Any]) -> Any:
        checked(GenerationParameters, parameters)
        return {"generated_text": prediction}

    def score(self, judged: Judged) -> Scored:
        counts = [len(example.target.token_ids) for example in judged.examples]
        sums = [loss * count for loss, count in zip(judged.losses, counts, strict=True)]
        expected = [example.target.text for example in judged.examples]
        return joined(language.score(sums, counts), generation.score(expected, judged.predictions))

    def worst(self, judged: Judged) -> tuple[WorstRow, ...]:
        return worst_rows(
            [example.line for example in judged.examples],
            judged.losses,
            [example.target.text for example in judged.examples],
            judged.predictions,
            [example.excerpt for example in judged.examples],
        )

    def _example(self, text: str, longest: int) -> Example:
        input_ids = self.tokenizer(text)["input_ids"]
        is_truncated = len(input_ids) > longest
        if is_truncated:
            # Not cut by hand: what ends a source stays at its end.
            input_ids = self.tokenizer(text, truncation=True, max_length=longest)["input_ids"]
        return Example(
            features={"input_ids": input_ids},
            target=None,
            cost=len(input_ids),
            excerpt=text,
            is_truncated=is_truncated,
        )

    def _shifted(self, labels: Tensor) -> Tensor:
        """Return what the decoder has read [examples, tokens] int64 when it predicts the labels."""
        shift: Any = getattr(self.model, "prepare_decoder_input_ids_from_labels", None)
        if shift is not None:
            shifted: Tensor = shift(labels=labels)
            return shifted
        start = torch.full_like(labels[:, :1], self.model.config.decoder_start_token_id)
        before = torch.cat([start, labels[:, :-1]], dim=1)
        return before.masked_fill(before == _IGNORED, self.tokenizer.pad_token_id or 0)

    def _answers(self, model: nn.Module, batch: Batch, chosen: GenerationInput) -> list[str]:
        """Return the text for each source of a batch, all with the same options."""
        most = min(chosen.max_new_tokens, self._longest_target - 1)
        options: dict[str, Any] = {"max_new_tokens": most, "do_sample": chosen.do_sample}
        if chosen.num_beams is not None:
            options["num_beams"] = chosen.num_beams
        if not chosen.do_sample:
            return self._texts(self._generate(model, batch, **options))
        options |= {"temperature": chosen.temperature, "top_p": chosen.top_p, "top_k": 0}
        texts = []
        # One by one, each from its own seed: no other input changes what is drawn.
        for row in range(len(batch["input_ids"])):
            part = {name: tensor[row : row + 1] for name, tensor in batch.items()}
            with torch.random.fork_rng():
                torch.manual_seed(chosen.seed)
                texts += self._texts(self._generate(model, part, **options))
        return texts

    def _generate(self, model: nn.Module, batch: Batch, **options: Any) -> list[list[int]]:
        generate: Any = model.generate
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        found: list[list[int]] = generate(**inputs, **options).tolist()
        return found

    def _texts(self, token_ids: list[list[int]]) -> list[str]:
        found: list[str] = self.tokenizer.batch_decode(token_ids, skip_special_tokens=True)
        return found


def _joints(model: PreTrainedModel) -> list[str]:
    """Return the names of the attentions that join two encoders; none in other models.

    The files of such a model do not tell whether they were trained. If they were, being trained
    whole costs a larger adapter and no more.
    """
    if model.config.model_type != "encoder-decoder":
        return []
    return [name for name, _ in model.named_modules() if name.endswith(".crossattention")]


def _alike(rows: Sequence[Sequence[float]]) -> list[list[int]]:
    """Return the places of rows, those of equal ones together."""
    places: dict[tuple[float, ...], list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(tuple(row), []).append(place)
    return list(places.values())
