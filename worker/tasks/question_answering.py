"""Question answering: where in a text the answer to a question stands, or that it has none.

Long texts are seen in windows, and what the model says of all of them is compared. An answer is
learnt from each window that has it whole; the others learn that they have none, for which the
first token stands (Devlin et al. 2018, https://arxiv.org/abs/1810.04805).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModelForQuestionAnswering

from app.domain.datasets import QuestionAnswerRecord, Record
from app.domain.errors import InvalidInput
from app.domain.job_spec import JobSpec
from worker.evaluation import answers
from worker.evaluation.measure import Scored
from worker.evaluation.worst_rows import WorstRow, worst_rows
from worker.tasks import Batch, Example, Judged, LossOptions, Outline, TaskLoss
from worker.tasks.answer_spans import Span, best_spans, place_answer
from worker.tasks.loading import load_tokenizer, load_with_head
from worker.tasks.requests import checked
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

# As transformers' pipeline had them.
_INPUT_WINDOW = 384
_OVERLAP = 128
# An answer may always have as many characters, about the 15 tokens of that pipeline.
_FEWEST_CHARACTERS = 64


class AnsweringParameters(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Parameters of a prediction.

    Attributes:
        top_k: how many answers, the likeliest first.
        max_answer_len: longest answer in tokens; None: none with more characters than any that
            was trained on.
        handle_impossible_answer: whether "" may be an answer; None: if it was in training.
    """

    top_k: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1
    max_answer_len: Annotated[int, msgspec.Meta(ge=1)] | None = None
    handle_impossible_answer: bool | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be found.

    Attributes:
        accepted: the answers, any of which is right; none: there is none.
        places: first and last token of the answer in each window.
    """

    accepted: Sequence[str]
    places: Sequence[tuple[int, int]]


class QuestionAnswering:
    """See `tasks.Task`. The outline holds whether any record has no answer, and the longest one.

    Of a record with several answers the first is learnt; any of them is right.
    """

    peft_task_type = "QUESTION_ANS"
    is_batch_whole = False

    def __init__(
        self, directory: Path, outline: Outline, profile: DeviceProfile, spec: JobSpec | None
    ) -> None:
        self.has_unanswerable: bool = outline["has_unanswerable"]
        self.longest_answer: int = outline["longest_answer"]
        self.tokenizer = load_tokenizer(directory)
        self.model, self.head_modules = load_with_head(
            AutoModelForQuestionAnswering, directory, profile
        )
        self._longest = longest_input(self.model, self.tokenizer)

    @staticmethod
    def survey(records: Iterable[tuple[int, Record]]) -> dict[str, Any]:
        longest, has_unanswerable = 0, False
        for _, record in records:
            assert isinstance(record, QuestionAnswerRecord)
            has_unanswerable |= not record.answers.text
            longest = max([longest, *map(len, record.answers.text)])
        if not longest:
            raise InvalidInput("no record has an answer: there is nothing to be found")
        return {
            "has_unanswerable": has_unanswerable,
            "longest_answer": max(longest, _FEWEST_CHARACTERS),
        }

    def encode(self, record: Record, max_length_tokens: int) -> Example | Sequence[Example]:
        """Return a record as an example; nothing, if the tokenizer drops its answer whole.

        A question that takes more than half a window is cut, and so is an answer that no window
        has whole; both are counted as truncated.
        """
        assert isinstance(record, QuestionAnswerRecord)
        longest = min(max_length_tokens, self._longest)
        question, is_question_cut = self._cut(record.question, longest // 2)
        windows = self._windows(question, record.context, longest)
        texts = record.answers.text
        span = (0, 0)
        if texts:
            start = record.answers.answer_start[0]
            span = (start, start + len(texts[0]))
        placed = place_answer(windows, span, [self._null_place(window) for window in windows])
        if placed is None:
            return []
        return _example(
            record.question,
            record.context,
            windows,
            Target(texts, placed.places),
            is_truncated=is_question_cut or placed.is_cut,
        )

    def encode_input(self, value: Any) -> Example:
        question, context = _question_and_context(value)
        longest = min(_INPUT_WINDOW, self._longest)
        if self._cut(question, longest // 2)[1]:
            raise InvalidInput(
                f"the question takes more than {longest // 2} tokens", param="inputs.question"
            )
        return _example(question, context, self._windows(question, context, longest))

    def collate(self, examples: Sequence[Example]) -> Batch:
        windows = [example.features["windows"] for example in examples]
        batch = collate_windows(windows, self.tokenizer.pad_token_id)
        if examples[0].target is not None:
            places = [place for example in examples for place in example.target.places]
            batch["places"] = torch.tensor(places)
        return batch

    def loss(self, model: nn.Module, batch: Batch, options: LossOptions) -> TaskLoss:
        bounds = outputs_of(model, batch, "start_logits", "end_logits")
        is_token = batch["attention_mask"] != 0
        per_window = torch.stack(
            [
                _cross_entropy(logits, is_token, places, options.label_smoothing)
                for logits, places in zip(bounds, batch["places"].unbind(dim=1), strict=True)
            ]
        ).mean(dim=0)
        return TaskLoss(
            sums_by_owner(per_window, batch[OWNERS]),
            sums_by_owner(torch.ones_like(per_window), batch[OWNERS]),
        )

    def predict(self, model: nn.Module, batch: Batch) -> list[Any]:
        """Return the logits of starts and ends [windows, 2, tokens] float32 of each example."""
        bounds = torch.stack(outputs_of(model, batch, "start_logits", "end_logits"), dim=1)
        counts = torch.bincount(batch[OWNERS]).tolist()
        return list(torch.split(bounds.cpu(), counts))

    def answer(self, example: Example, prediction: Any, parameters: Mapping[str, Any]) -> Any:
        """Return `{score, start, end, answer}`, or a list of them if more than one is asked for."""
        chosen = checked(AnsweringParameters, parameters)
        context = example.features["context"]
        found = [
            {
                "score": span.score,
                "start": span.start,
                "end": span.end,
                "answer": context[span.start : span.end],
            }
            for span in self._spans(example, prediction, chosen)
        ]
        return found[0] if chosen.top_k == 1 else found

    def score(self, judged: Judged) -> Scored:
        accepted = [example.target.accepted for example in judged.examples]
        return answers.score(accepted, self._answers(judged))

    def worst(self, judged: Judged) -> tuple[WorstRow, ...]:
        return worst_rows(
            [example.line for example in judged.examples],
            judged.losses,
            [" | ".join(one.target.accepted) or "no answer" for one in judged.examples],
            [text or "no answer" for text in self._answers(judged)],
            [example.excerpt for example in judged.examples],
        )

    def _answers(self, judged: Judged) -> list[str]:
        """Return what a request without parameters would be answered."""
        return [
            self.answer(example, prediction, {})["answer"]
            for example, prediction in zip(judged.examples, judged.predictions, strict=True)
        ]

    def _spans(
        self, example: Example, prediction: Tensor, chosen: AnsweringParameters
    ) -> list[Span]:
        windows: Sequence[Window] = example.features["windows"]
        may_be_none = chosen.handle_impossible_answer
        if may_be_none is None:
            may_be_none = self.has_unanswerable
        logits: NDArray[np.float64] = prediction.double().numpy()
        return best_spans(
            windows,
            logits,
            [self._null_place(window) for window in windows] if may_be_none else None,
            top_k=chosen.top_k,
            max_tokens=chosen.max_answer_len,
            max_characters=None if chosen.max_answer_len else self.longest_answer,
        )

    def _windows(self, question: str, context: str, longest: int) -> list[Window]:
        overlap = min(_OVERLAP, longest // 4)
        return windows_of(self.tokenizer, context, longest, overlap, before=question)

    def _cut(self, question: str, longest: int) -> tuple[str, bool]:
        """Return a question of at most so many tokens, and whether it was longer."""
        encoding = self.tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)
        offsets = encoding["offset_mapping"]
        if len(offsets) <= longest:
            return question, False
        return question[: offsets[longest - 1][1]], True

    def _null_place(self, window: Window) -> int:
        input_ids = window.inputs["input_ids"]
        first: int | None = self.tokenizer.cls_token_id
        return input_ids.index(first) if first in input_ids else 0


def _example(
    question: str,
    context: str,
    windows: Sequence[Window],
    target: Target | None = None,
    is_truncated: bool = False,
) -> Example:
    return Example(
        features={"context": context, "windows": windows},
        target=target,
        cost=len(windows) * max(map(len, windows)),
        excerpt=f"{question} | {context}",
        is_truncated=is_truncated,
    )


def _cross_entropy(logits: Tensor, is_token: Tensor, places: Tensor, smoothing: float) -> Tensor:
    """Return the loss of each window [windows]; padding is no place that could be chosen."""
    chances = logits.masked_fill(~is_token, torch.finfo(logits.dtype).min).log_softmax(dim=1)
    losses = -chances.gather(1, places[:, None]).squeeze(1)
    if not smoothing:
        return losses
    spread = -chances.masked_fill(~is_token, 0.0).sum(dim=1) / is_token.sum(dim=1)
    return (1 - smoothing) * losses + smoothing * spread


def _question_and_context(value: Any) -> tuple[str, str]:
    if not isinstance(value, Mapping) or not set(value) <= {"question", "context"}:
        raise InvalidInput(
            "expected an object with the texts 'question' and 'context'", param="inputs"
        )
    for field in ("question", "context"):
        text = value.get(field)
        if not isinstance(text, str) or not text.strip():
            raise InvalidInput(f"'{field}' must be a text", param=f"inputs.{field}")
    return value["question"], value["context"]
