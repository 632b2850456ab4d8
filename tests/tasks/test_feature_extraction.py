"""Vectors of texts: pooling, both losses, rankings of held-out pairs, and what training brings."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, mse_loss, normalize
from transformers import BertConfig, BertModel, FeatureExtractionPipeline

from app.domain.errors import InvalidInput, TrainingFailed
from app.storage.local import LocalStorage
from tests.support.datasets import faq_scored_pairs, faq_text_pairs
from tests.tasks.conftest import (
    CPU,
    RunTask,
    answered,
    encoded,
    judged,
    loss_of,
    make_task,
    numbered,
    predicted,
    task_spec,
    validations,
)
from worker.evaluation.measure import values
from worker.tasks.contrastive import contrastive_losses
from worker.tasks.feature_extraction import TOKENS_AT_A_TIME, FeatureExtraction
from worker.tasks.pooling import SentenceForm, sentence_form

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

TASK = "feature-extraction"
REFUND = "I want my money back"
OTHERS = ("Please refund my order", "The parcel is late", "What a lovely sunny day")
PAIRS: list[dict[str, Any]] = [
    {"anchor": REFUND, "positive": OTHERS[0]},
    {"anchor": "Where is my delivery?", "positive": OTHERS[1]},
    {"anchor": "How is the weather today?", "positive": OTHERS[2]},
]
SCORED: list[dict[str, Any]] = [
    {"sentence1": REFUND, "sentence2": OTHERS[0], "score": 0.9},
    {"sentence1": REFUND, "sentence2": OTHERS[2], "score": -0.5},
    {"sentence1": REFUND, "sentence2": OTHERS[1], "score": 0.2},
]


@pytest.fixture(scope="module")
def base(minilm: Path) -> Any:
    """The base model as it is served, without anything trained."""
    task = FeatureExtraction(minilm, {"pooling": "mean", "normalize": True}, CPU, None)
    task.model.eval()
    return task


@pytest.fixture(scope="module")
def pairs_task(minilm: Path) -> Any:
    return make_task(TASK, minilm, PAIRS)


@pytest.fixture(scope="module")
def scored_task(minilm: Path) -> Any:
    return make_task(TASK, minilm, SCORED)


@pytest.fixture
def tiny_dir(minilm: Path, tmp_path: Path) -> Path:
    """An encoder that knows nothing, without any word on how it pools."""
    directory = tmp_path / "encoder"
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(minilm / name, directory / name)
    return directory


def test_vectors_are_those_the_model_was_published_for(base: Any) -> None:
    vectors = torch.tensor([answered(base, text) for text in (REFUND, *OTHERS)])

    assert (vectors @ vectors[0]).tolist() == pytest.approx([1.0, 0.56, 0.13, 0.04], abs=0.005)


def test_a_vector_is_the_mean_of_what_the_pipeline_gives(base: Any) -> None:
    kind: Any = FeatureExtractionPipeline
    pipeline = kind(model=base.model, tokenizer=base.tokenizer, device=-1)
    text = "A text of some length, and with a comma."

    of_tokens = torch.tensor(pipeline(text)[0])

    expected = normalize(of_tokens.mean(dim=0), dim=0).tolist()
    assert answered(base, text) == pytest.approx(expected, abs=1e-6)


def test_a_vector_does_not_depend_on_the_batch(base: Any) -> None:
    texts = [REFUND, "word " * 60, REFUND, "Short."]

    together = predicted(base, [base.encode_input(text) for text in texts])

    for text, vector in zip(texts, together, strict=True):
        assert vector == pytest.approx(answered(base, text), abs=1e-5)


def test_a_long_text_is_cut_where_the_model_was_made_for(base: Any) -> None:
    example = base.encode_input("word " * 300)

    assert (example.cost, example.is_truncated) == (256, True)
    assert not base.encode_input("word " * 254).is_truncated


def test_the_base_model_says_how_it_pools(minilm: Path, tiny_dir: Path) -> None:
    assert sentence_form(minilm) == SentenceForm("mean", normalize=True, max_tokens=256)
    assert sentence_form(tiny_dir) == SentenceForm("mean", normalize=True, max_tokens=None)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken"])
@pytest.mark.parametrize("is_normalized", [True, False])
def test_each_pooling_is_done(tiny_dir: Path, pooling: str, is_normalized: bool) -> None:
    key = pooling if pooling == "lasttoken" else f"{pooling}_token{'s' * (pooling != 'cls')}"
    describe(tiny_dir, {f"pooling_mode_{key}": True}, *["Normalize"] * is_normalized)
    task = FeatureExtraction(tiny_dir, {}, CPU, None)
    task.model.eval()
    texts = ["A few words.", "Some more words than these."]

    vectors = torch.tensor(predicted(task, [task.encode_input(text) for text in texts]))

    for text, vector in zip(texts, vectors, strict=True):
        with torch.no_grad():
            hidden = task.model(**task.tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        expected = {
            "mean": hidden.mean(dim=0),
            "cls": hidden[0],
            "max": hidden.amax(dim=0),
            "lasttoken": hidden[-1],
        }[pooling]
        expected = normalize(expected, dim=0) if is_normalized else expected
        torch.testing.assert_close(vector, expected, atol=1e-5, rtol=1e-5)


def test_refuses_a_form_it_cannot_make(tiny_dir: Path) -> None:
    describe(tiny_dir, {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True})
    with pytest.raises(InvalidInput, match="mean and cls"):
        sentence_form(tiny_dir)

    describe(tiny_dir, {"pooling_mode_weightedmean_tokens": True})
    with pytest.raises(InvalidInput, match="weightedmean"):
        sentence_form(tiny_dir)

    describe(tiny_dir, {"pooling_mode_mean_tokens": True}, "Dense")
    with pytest.raises(InvalidInput, match="Dense"):
        sentence_form(tiny_dir)

    (tiny_dir / "1_Pooling" / "config.json").unlink()
    describe_modules(tiny_dir)
    with pytest.raises(InvalidInput, match="cannot be read"):
        sentence_form(tiny_dir)


def test_the_outline_is_the_objective(pairs_task: Any, scored_task: Any) -> None:
    assert FeatureExtraction.survey(numbered(PAIRS)) == {"objective": "contrastive"}
    assert FeatureExtraction.survey(numbered(SCORED)) == {"objective": "cosine"}
    assert pairs_task.is_batch_whole
    assert not scored_task.is_batch_whole
    assert not pairs_task.head_modules


@pytest.mark.parametrize("with_negatives", [(), (0, 2), (0, 1, 2)])
def test_the_contrastive_loss_is_that_of_sentence_transformers(
    pairs_task: Any, with_negatives: tuple[int, ...]
) -> None:
    negatives = {number: f"Something else, number {number}." for number in with_negatives}
    records = [
        record | ({"negative": negatives[number]} if number in negatives else {})
        for number, record in enumerate(PAIRS)
    ]

    found = loss_of(pairs_task, pairs_task.collate(encoded(pairs_task, records)))

    def vectors_of(texts: list[str]) -> Tensor:
        return torch.tensor([answered(pairs_task, text) for text in texts])

    anchors = vectors_of([record["anchor"] for record in records])
    candidates = vectors_of(
        [record["positive"] for record in records] + list(negatives.values()),
    )
    expected = multiple_negatives_ranking_loss(anchors, candidates)
    assert float(found.sums.sum() / found.weights.sum()) == pytest.approx(float(expected), abs=1e-5)


def test_what_belongs_to_an_anchor_is_no_negative_for_it() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(6, 8)
    # Pairs 0 and 1 have the same positive, pairs 2 and 3 the same anchor; the positive of pair 4
    # is the anchor of pair 0.
    texts = torch.tensor([[0, 1], [2, 1], [3, 4], [3, 5], [5, 0]])

    losses = contrastive_losses(vectors, texts)

    allowed = [[1, 4, 5], [1, 4, 5, 0], [4, 1, 0], [5, 1, 0], [0, 1, 4]]
    directions = normalize(vectors, dim=1)
    # Of equal candidates, each counts: 1 is there twice for all but those that it belongs to.
    counts = {1: 2}
    for (anchor, positive), places, loss in zip(texts.tolist(), allowed, losses, strict=True):
        others = [
            place
            for place in places
            for _ in range(counts.get(place, 1) if place != positive else 1)
        ]
        scores = 20 * directions[others] @ directions[anchor]
        expected = cross_entropy(scores[None], torch.tensor([others.index(positive)]))
        assert float(loss) == pytest.approx(float(expected), abs=1e-5)


def test_the_loss_of_a_large_batch_is_computed_in_parts(tiny_dir: Path) -> None:
    task = make_task(TASK, tiny_dir, PAIRS)
    records = [
        {"anchor": f"number {n} " * (n + 2), "positive": f"{n} apples " * 40} for n in range(48)
    ]
    batch = task.collate(encoded(task, records, longest=256))
    assert batch["input_ids"].numel() > 2 * TOKENS_AT_A_TIME
    task.model.requires_grad_(True)

    loss_in_parts = task.loss(task.model, batch, None).sums.mean()
    loss_in_parts.backward()
    in_parts = gradients(task.model)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    hidden = task.model(**inputs).last_hidden_state
    weights = batch["attention_mask"][:, :, None]
    pooled = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
    loss = multiple_negatives_ranking_loss(
        pooled[batch["texts"][:, 0]], pooled[batch["texts"][:, 1]]
    )
    task.model.zero_grad()
    loss.backward()

    assert loss_in_parts.item() == pytest.approx(loss.item(), abs=1e-5)
    torch.testing.assert_close(in_parts, gradients(task.model), atol=1e-5, rtol=1e-4)


def test_the_loss_of_scored_pairs_is_the_squared_error_of_the_cosine(scored_task: Any) -> None:
    found = loss_of(scored_task, scored_task.collate(encoded(scored_task, SCORED)))

    vectors = torch.tensor([answered(scored_task, text) for text in (REFUND, *OTHERS)])
    cosines = cosine_similarity(vectors[[0, 0, 0]], vectors[[1, 3, 2]])
    expected = mse_loss(cosines, torch.tensor([0.9, -0.5, 0.2]), reduction="none")
    torch.testing.assert_close(found.sums, expected, atol=1e-5, rtol=1e-5)


def test_scores_rank_all_held_out_positives(pairs_task: Any) -> None:
    # Two anchors have the same positive, and one of them is a positive itself.
    texts = [("a", "p"), ("b", "p"), ("c", "q"), ("d", "a")]
    records = [{"anchor": anchor, "positive": positive} for anchor, positive in texts]
    directions = {
        "a": (1.0, 0.0, 0.0),
        "b": (0.0, 1.0, 0.0),
        "c": (0.6, 0.8, 0.0),
        "d": (0.0, 0.6, 0.8),
        "p": (0.8, 0.6, 0.0),
        "q": (0.0, 0.0, 1.0),
    }
    predictions = [
        np.array([directions[anchor], directions[positive]], np.float32)
        for anchor, positive in texts
    ]
    held_out = judged(encoded(pairs_task, records), predictions)

    found = values(pairs_task.score(held_out))

    # a finds p, itself being no candidate; b finds p; c finds p and a before q; d finds q, p, a.
    assert found["recall_at_1"] == pytest.approx(2 / 4)
    assert found["mrr"] == pytest.approx((1 + 1 + 1 / 3 + 1 / 3) / 4)
    assert found["loss"] == pytest.approx(1.5)
    worst = pairs_task.worst(held_out)
    assert [(row.expected, row.predicted) for row in worst] == [
        ("a", "q"),
        ("q", "p"),
        ("p", "p"),
        ("p", "p"),
    ]


def test_scores_of_pairs_are_compared_by_rank(scored_task: Any) -> None:
    examples = encoded(scored_task, SCORED)

    held_out = judged(examples, predicted(scored_task, examples))

    # .56 for .9, .04 for -.5, .13 for .2: in the right order.
    assert values(scored_task.score(held_out))["spearman"] == pytest.approx(1.0)
    cosines = [float(row.predicted) for row in scored_task.worst(held_out)]
    assert cosines == pytest.approx([0.13, 0.04, 0.56], abs=0.005)


def test_a_held_out_loss_is_that_of_batches_as_in_training(
    run_task: RunTask, storage: LocalStorage, minilm: Path, pairs_task: Any
) -> None:
    # The longest would not go through the model together, were it not for their loss.
    heldout = faq_text_pairs()[-6:]
    spec = task_spec(
        storage, TASK, PAIRS, heldout, batch_size=3, max_length_tokens=256, learning_rate=1e-4
    )

    attempt = run_task(spec, minilm)

    examples = encoded(pairs_task, heldout, longest=256)
    assert max(example.cost for example in examples) * 3 < 1024
    parts = [examples[:3], examples[3:]]
    losses = torch.cat([loss_of(pairs_task, pairs_task.collate(part)).sums for part in parts])
    assert validations(attempt, "loss")[0] == pytest.approx(float(losses.mean()), abs=1e-5)


def test_learns_by_heart_which_answer_belongs_to_a_question(
    run_task: RunTask, storage: LocalStorage, minilm: Path
) -> None:
    pairs = faq_text_pairs(32)
    spec = task_spec(storage, TASK, pairs, pairs, num_epochs=2, batch_size=16, max_length_tokens=16)

    attempt = run_task(spec, minilm)

    before, *_, after = validations(attempt, "loss")
    assert after < 0.7 * before
    before, *_, after = validations(attempt, "mrr")
    assert after > before + 0.02


@pytest.mark.slow
def test_finds_more_answers_after_training(
    run_task: RunTask, storage: LocalStorage, minilm: Path
) -> None:
    pairs = faq_text_pairs(470)
    spec = task_spec(
        storage, TASK, pairs[:320], pairs[320:], num_epochs=2, batch_size=32, max_length_tokens=64
    )

    attempt = run_task(spec, minilm)

    for metric, gain in (("recall_at_1", 0.06), ("mrr", 0.05)):
        before, *_, after = validations(attempt, metric)
        assert after > before + gain


def test_learns_to_tell_scores(run_task: RunTask, storage: LocalStorage, minilm: Path) -> None:
    pairs = faq_scored_pairs(24)
    spec = task_spec(storage, TASK, pairs, pairs, batch_size=8, max_length_tokens=16, num_epochs=2)

    attempt = run_task(spec, minilm)

    before, *_, after = validations(attempt, "loss")
    assert after < 0.8 * before
    assert validations(attempt, "spearman")[-1] > 0.7


def test_refuses_what_cannot_be_learnt(
    run_task: RunTask, storage: LocalStorage, minilm: Path, pairs_task: Any, scored_task: Any
) -> None:
    with pytest.raises(InvalidInput, match="'score' is 9"):
        encoded(scored_task, [SCORED[0] | {"score": 9.0}])
    with pytest.raises(InvalidInput, match="scored pairs"):
        encoded(scored_task, PAIRS)
    with pytest.raises(InvalidInput, match="without scores"):
        encoded(pairs_task, SCORED)
    with pytest.raises(TrainingFailed, match="'batch_size' must be at least 2"):
        run_task(task_spec(storage, TASK, PAIRS, batch_size=1), minilm)
    with pytest.raises(InvalidInput, match="label smoothing"):
        run_task(task_spec(storage, TASK, PAIRS, label_smoothing=0.1), minilm)


@pytest.mark.parametrize("value", [{"text": REFUND}, 3, [REFUND], "", " \n"])
def test_refuses_a_wrong_input(base: Any, value: Any) -> None:
    with pytest.raises(InvalidInput) as refused:
        base.encode_input(value)

    assert refused.value.param == "inputs"


def test_refuses_any_parameter(base: Any) -> None:
    with pytest.raises(InvalidInput) as refused:
        answered(base, REFUND, truncate=True)

    assert refused.value.param == "parameters"


def describe(directory: Path, pooling: dict[str, bool], *further: str) -> None:
    """Write the files of sentence-transformers beside a model."""
    (directory / "1_Pooling").mkdir(exist_ok=True)
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    describe_modules(directory, *further)


def describe_modules(directory: Path, *further: str) -> None:
    kinds = ["Transformer", "Pooling", *further]
    modules = [
        {"path": f"{number}_{kind}" if number else "", "type": f"sentence_transformers.{kind}"}
        for number, kind in enumerate(kinds)
    ]
    (directory / "modules.json").write_text(json.dumps(modules))


def multiple_negatives_ranking_loss(anchors: Tensor, candidates: Tensor) -> Tensor:
    """As sentence-transformers 5.1 computes it: cosines by 20, the i-th candidate is right."""
    scores = normalize(anchors, dim=1) @ normalize(candidates, dim=1).T * 20.0
    return cross_entropy(scores, torch.arange(len(anchors)))


def gradients(model: Any) -> dict[str, Tensor]:
    return {
        name: weight.grad.clone()
        for name, weight in model.named_parameters()
        if weight.grad is not None
    }
