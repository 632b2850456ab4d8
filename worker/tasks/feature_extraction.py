"""Feature extraction: texts as vectors, near each other where the texts belong together."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel

from app.domain.datasets import Record, ScoredPairsRecord, TextPairsRecord
from app.domain.errors import InvalidInput
from app.domain.job_spec import JobSpec
from worker.evaluation import retrieval
from worker.evaluation.measure import Scored, joined, means
from worker.evaluation.worst_rows import WorstRow, worst_rows
from worker.tasks import Batch, Example, Judged, LossOptions, Outline, TaskLoss
from worker.tasks.contrastive import NONE, contrastive_losses
from worker.tasks.loading import load_tokenizer, load_with_head, padded
from worker.tasks.pooling import POOLINGS, sentence_form
from worker.tasks.ranking import Ranking, cosines, ranked
from worker.tasks.requests import checked, text_of
from worker.tasks.windows import longest_input
from worker.trunk.device import DeviceProfile

Objective = Literal["contrastive", "cosine"]

# Of more tokens than these the activations are not kept for the backward pass but computed again:
# a batch cannot be split, since its texts are compared with each other.
TOKENS_AT_A_TIME = 4096


class EmbeddingParameters(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Parameters of a prediction: there are none."""


class FeatureExtraction:
    """See `tasks.Task`.

    The outline says which of two things is learnt:

    `contrastive`, from pairs and triplets: an anchor is to be nearer to its positive than to every
    other text of the batch, by the softmax over cosines (https://arxiv.org/abs/1705.00652, there
    over dot products), which is sentence-transformers' MultipleNegativesRankingLoss. Whatever is
    known to belong to an anchor is no negative for it.

    `cosine`, from scored pairs: the cosine is to equal the score, by the squared error, which is
    sentence-transformers' CosineSimilarityLoss. Its CoSENTLoss would learn the order of the scores
    alone, and from the batch as a whole: with this one a cosine means what a score meant, and the
    loss of a pair is its own, whatever pairs are beside it.

    How tokens become a vector, the base model's own files say, or else `pooling` and `normalize` in
    the outline. An outline of these alone, or an empty one, is that of a base model in service.

    The answer to a request is the vector of the text, where the Hugging Face pipeline of this name
    gives those of all tokens.
    """

    peft_task_type = "FEATURE_EXTRACTION"
    head_modules: Sequence[str] = ()

    def __init__(
        self, directory: Path, outline: Outline, profile: DeviceProfile, spec: JobSpec | None
    ) -> None:
        form = sentence_form(directory)
        self.objective: Objective | None = outline.get("objective")
        self.is_batch_whole = self.objective == "contrastive"
        self._pool = POOLINGS[outline.get("pooling", form.pooling)]
        self._normalize: bool = outline.get("normalize", form.normalize)
        self._batch_size = spec.hyperparameters.batch_size if spec else None
        _refuse_label_smoothing(spec)
        self.tokenizer = load_tokenizer(directory)
        self.model, _ = load_with_head(AutoModel, directory, profile)
        if self.model.config.is_encoder_decoder:
            raise InvalidInput("the base model is an encoder-decoder; an encoder is needed")
        # What BERT and its kin make of the first token is no part of the vector.
        if isinstance(getattr(self.model, "pooler", None), nn.Module):
            anything: Any = self.model
            anything.pooler = None
        longest = longest_input(self.model, self.tokenizer)
        self._longest = min(longest, form.max_tokens or longest)

    @staticmethod
    def survey(records: Iterable[tuple[int, Record]]) -> dict[str, Any]:
        # A file holds records of one kind.
        _, first = next(iter(records))
        is_scored = isinstance(first, ScoredPairsRecord)
        objective: Objective = "cosine" if is_scored else "contrastive"
        return {"objective": objective}

    def encode(self, record: Record, max_length_tokens: int) -> Example:
        longest = min(max_length_tokens, self._longest)
        if isinstance(record, ScoredPairsRecord):
            if self.objective != "cosine":
                raise InvalidInput("this model learns pairs without scores, as in training")
            if not -1 <= record.score <= 1:
                raise InvalidInput(
                    f"'score' is {record.score:g}; it must lie between -1 and 1, as cosines do"
                )
            return self._example([record.sentence1, record.sentence2], record.score, longest)
        assert isinstance(record, TextPairsRecord)
        if self.objective != "contrastive":
            raise InvalidInput("this model learns scored pairs, as in training")
        texts = [record.anchor, record.positive]
        if record.negative is not None:
            texts.append(record.negative)
        elif self._batch_size == 1:
            raise InvalidInput(
                "nothing can be learnt from a pair by itself: 'negative' is missing, or else "
                "'batch_size' must be at least 2"
            )
        return self._example(texts, record.positive, longest)

    def encode_input(self, value: Any) -> Example:
        return self._example([text_of(value)], None, self._longest)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Return each different text once, the longest first, and which ones an example has."""
        different = {row for example in examples for row in example.features["texts"]}
        rows = sorted(different, key=lambda row: (-len(row), row))
        places = {row: place for place, row in enumerate(rows)}
        batch = {
            "input_ids": padded([list(row) for row in rows], self.tokenizer.pad_token_id or 0),
            "attention_mask": padded([[1] * len(row) for row in rows], 0),
            "texts": padded(
                [[places[row] for row in example.features["texts"]] for example in examples], NONE
            ),
        }
        if examples[0].target is not None and self.objective == "cosine":
            batch["scores"] = torch.tensor([example.target for example in examples])
        return batch

    def loss(self, model: nn.Module, batch: Batch, options: LossOptions) -> TaskLoss:
        vectors, texts = self._vectors(model, batch), batch["texts"]
        if self.objective == "cosine":
            found = cosine_similarity(vectors[texts[:, 0]], vectors[texts[:, 1]])
            sums = (found - batch["scores"]) ** 2
        else:
            sums = contrastive_losses(vectors, texts)
        return TaskLoss(sums, torch.ones_like(sums))

    def predict(self, model: nn.Module, batch: Batch) -> list[Any]:
        """Return the vector of each input; of a held-out pair, both, [2, width] float32."""
        vectors, texts = self._vectors(model, batch), batch["texts"]
        if self._normalize:
            vectors = normalize(vectors, dim=1)
        if texts.shape[1] == 1:
            found: list[Any] = vectors[texts[:, 0]].tolist()
            return found
        return list(vectors[texts[:, :2]].cpu().numpy())

    def answer(self, example: Example, prediction: Any, parameters: Mapping[str, Any]) -> Any:
        checked(EmbeddingParameters, parameters)
        return prediction

    def score(self, judged: Judged) -> Scored:
        """Rank the positives of all held-out pairs for each anchor, or compare cosine and score."""
        if self.objective == "cosine":
            scores = [example.target for example in judged.examples]
            return joined(_mean_loss(judged), retrieval.score_pairs(scores, cosines(judged)))
        judged = ranked(judged)
        ranking = Ranking(judged)
        return joined(
            _mean_loss(judged),
            retrieval.score(ranking.similarities, ranking.is_relevant),
        )

    def worst(self, judged: Judged) -> tuple[WorstRow, ...]:
        if self.objective == "cosine":
            expected = [f"{example.target:.4g}" for example in judged.examples]
            predicted = [f"{cosine:.4g}" for cosine in cosines(judged)]
        else:
            judged = ranked(judged)
            expected = [example.target for example in judged.examples]
            predicted = Ranking(judged).nearest()
        return worst_rows(
            [example.line for example in judged.examples],
            judged.losses,
            expected,
            predicted,
            [example.excerpt for example in judged.examples],
        )

    def _example(self, texts: Sequence[str], target: Any, longest: int) -> Example:
        rows = self.tokenizer(list(texts))["input_ids"]
        is_truncated = any(len(row) > longest for row in rows)
        if is_truncated:
            # Not cut by hand: what ends a text stays at its end.
            rows = self.tokenizer(list(texts), truncation=True, max_length=longest)["input_ids"]
        return Example(
            features={"texts": tuple(map(tuple, rows))},
            target=target,
            cost=sum(map(len, rows)),
            excerpt=" | ".join(texts) if self.objective == "cosine" else texts[0],
            is_truncated=is_truncated,
        )

    def _vectors(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the vectors [texts, width] float32 of a batch's texts, of any length."""
        input_ids, mask = batch["input_ids"], batch["attention_mask"]
        lengths: list[int] = mask.sum(dim=1).tolist()
        parts: list[Tensor] = []
        start = 0
        while start < len(lengths):
            longest = lengths[start]
            stop = start + max(1, TOKENS_AT_A_TIME // longest)
            part = input_ids[start:stop, :longest], mask[start:stop, :longest]
            if start == 0 and stop >= len(lengths):
                return self._pooled(model, *part)
            parts.append(checkpoint(self._pooled, model, *part, use_reentrant=False))
            start = stop
        return torch.cat(parts)

    def _pooled(self, model: nn.Module, input_ids: Tensor, mask: Tensor) -> Tensor:
        hidden: Tensor = model(input_ids=input_ids, attention_mask=mask).last_hidden_state
        return self._pool(hidden.float(), mask)


def _mean_loss(judged: Judged) -> Scored:
    return Scored(len(judged.losses), (means(loss=judged.losses),))


def _refuse_label_smoothing(spec: JobSpec | None) -> None:
    if spec is not None and spec.hyperparameters.label_smoothing > 0:
        raise InvalidInput(
            "label smoothing does not apply to embeddings, which have no labels",
            param="tunesmith.training.label_smoothing",
        )
