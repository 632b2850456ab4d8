"""Masked language modelling: pieces, what is masked and when, the loss, the pipeline's answers."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import FillMaskPipeline

from app.domain.errors import InvalidInput
from app.storage.local import LocalStorage
from tests.support.datasets import as_jsonl, faq_texts
from tests.tasks.conftest import (
    RunTask,
    answered,
    encoded,
    judged,
    loss_of,
    make_task,
    predicted,
    task_spec,
    validations,
)
from worker.evaluation.measure import values
from worker.tasks.fill_mask import IGNORED, Filled
from worker.training.examples import encode_examples

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

TASK = "fill-mask"
LONG = {"text": " ".join(f"The number {number} comes next." for number in range(100))}
SHORT = {"text": "Hello there."}
ONE_MASK = "The capital of France is [MASK]."
TWO_MASKS = "The [MASK] of France is [MASK]."


@pytest.fixture(scope="module")
def filler(minilm: Path) -> Any:
    return make_task(TASK, minilm, [SHORT])


def masked(task: Any, examples: Any, *, is_fixed: bool) -> Any:
    """Return the token ids as masked, and the labels."""
    batch = task.collate(examples)
    found, labels = task._masked(batch, batch["fixed_seeds" if is_fixed else "drawn_seeds"])
    return found["input_ids"], labels


def test_a_long_text_is_cut_into_pieces_without_loss(filler: Any) -> None:
    examples = encoded(filler, [LONG], longest=32)

    whole = filler.tokenizer(LONG["text"])["input_ids"]
    pieces = [example.features["window"].inputs["input_ids"] for example in examples]
    assert [token for piece in pieces for token in piece[1:-1]] == whole[1:-1]
    assert max(map(len, pieces)) == 32
    assert not any(example.is_truncated for example in examples)
    assert examples[1].excerpt.startswith("The number 5 comes")


def test_masks_as_bert_was_trained(filler: Any) -> None:
    """15 % of the tokens; of these 80 % are hidden, 10 % replaced, and the rest is left."""
    torch.manual_seed(0)
    examples = encoded(filler, [LONG] * 30)
    originals = filler.collate(examples)["input_ids"]

    ids, labels = masked(filler, examples, is_fixed=False)

    is_special = (originals == 101) | (originals == 102) | (originals == 0)
    is_masked = labels != IGNORED
    assert not (is_masked & is_special).any()
    assert torch.equal(labels[is_masked], originals[is_masked])
    assert torch.equal(ids[~is_masked], originals[~is_masked])
    total = float(is_masked.sum())
    assert total / float((~is_special).sum()) == pytest.approx(0.15, abs=0.01)
    is_hidden = ids == filler.tokenizer.mask_token_id
    assert float(is_hidden.sum()) / total == pytest.approx(0.8, abs=0.03)
    is_replaced = is_masked & ~is_hidden & (ids != originals)
    assert float(is_replaced.sum()) / total == pytest.approx(0.1, abs=0.02)
    assert len(ids[is_replaced].unique()) > 0.9 * float(is_replaced.sum())


def test_a_short_text_has_one_mask_at_least(filler: Any) -> None:
    torch.manual_seed(0)

    _, labels = masked(filler, encoded(filler, [SHORT] * 50), is_fixed=False)

    assert ((labels != IGNORED).sum(dim=1) >= 1).all()


def test_training_masks_anew_and_judging_does_not(filler: Any) -> None:
    """In judging it depends neither on a seed nor on what else is in the batch."""
    example = encoded(filler, [LONG])[0]
    torch.manual_seed(1)
    first = masked(filler, [example], is_fixed=False)[1]
    again = masked(filler, [example], is_fixed=False)[1]
    torch.manual_seed(1)
    repeated = masked(filler, [example], is_fixed=False)[1]
    alone = masked(filler, encoded(filler, [SHORT]), is_fixed=True)[1][0]
    beside = masked(filler, [example, *encoded(filler, [SHORT])], is_fixed=True)[1][1]

    assert not torch.equal(first, again)
    assert torch.equal(first, repeated)
    assert torch.equal(alone, beside[: len(alone)])
    assert (beside[len(alone) :] == IGNORED).all()


def test_the_loss_is_drawn_in_training_alone(filler: Any) -> None:
    piece = encoded(filler, [LONG], longest=32)[:1]
    batch = filler.collate(piece)
    quiet = [float(loss_of(filler, batch).sums[0]) for _ in range(2)]
    assert quiet[0] == quiet[1]

    filler.model.train()
    try:
        again = [float(loss_of(filler, batch).weights[0]) for _ in range(2)]
        drawn = [float(loss_of(filler, filler.collate(piece)).weights[0]) for _ in range(12)]
    finally:
        filler.model.eval()
    # What goes through the model twice in one step, as an attack does, is masked alike.
    assert again[0] == again[1]
    assert len(set(drawn)) > 1


def test_the_loss_is_that_of_transformers(filler: Any) -> None:
    examples = encoded(filler, [SHORT, {"text": faq_texts(1)[0]["text"]}])
    batch = filler.collate(examples)
    ids, labels = masked(filler, examples, is_fixed=True)

    found = loss_of(filler, batch)

    expected = filler.model(
        input_ids=ids, attention_mask=batch["attention_mask"], labels=labels
    ).loss.detach()
    assert float(found.sums.sum() / found.weights.sum()) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("text", [ONE_MASK, TWO_MASKS])
@pytest.mark.parametrize(
    "parameters", [{}, {"top_k": 2}, {"targets": ["paris", "london"]}, {"targets": "paris"}]
)
def test_answers_are_those_of_the_pipeline(
    filler: Any, text: str, parameters: dict[str, Any]
) -> None:
    make: Any = FillMaskPipeline
    expected = make(model=filler.model, tokenizer=filler.tokenizer, device=-1)(text, **parameters)

    found = answered(filler, text, **parameters)

    assert flat(found) == [
        one | {"score": pytest.approx(one["score"], rel=1e-4)} for one in flat(expected)
    ]
    assert isinstance(found[0], dict) == (text == ONE_MASK)


def test_scores_the_masked_tokens(filler: Any) -> None:
    """Means over tokens, not over texts: three of five are right."""
    examples = encoded(filler, [SHORT, SHORT])
    filled = [Filled([1, 2, 3, 4], [1, 2, 3, 9]), Filled([2023], [2024])]

    found = values(filler.score(judged(examples, filled)))

    assert found["token_accuracy"] == 3 / 5
    assert found["loss"] == pytest.approx((0.0 * 4 + 1.0 * 1) / 5)
    worst = filler.worst(judged(examples, filled))[0]
    assert (worst.expected, worst.predicted) == ("this", "are")


def test_predicts_what_was_masked(filler: Any) -> None:
    examples = encoded(filler, [SHORT, *faq_texts(2)])
    _, labels = masked(filler, examples, is_fixed=True)

    found = predicted(filler, examples)

    assert [len(one.expected) for one in found] == (labels != IGNORED).sum(dim=1).tolist()
    assert [len(one.predicted) for one in found] == [len(one.expected) for one in found]


def test_the_head_leaves_the_embeddings_alone(filler: Any) -> None:
    assert filler.head_modules == (
        "cls.predictions.transform.LayerNorm",
        "cls.predictions.transform.dense",
    )


def test_learns_from_little(run_task: RunTask, storage: LocalStorage, minilm: Path) -> None:
    records = [{"text": one["text"][:120]} for one in faq_texts(60)]
    spec = task_spec(
        storage, TASK, records[:40], records[40:], method="continued_pretraining", batch_size=8
    )

    attempt = run_task(spec, minilm)

    before, after = validations(attempt, "loss")
    assert 10 < before < 12  # ln(30522) = 10.3: the head is a fresh one.
    assert after < before - 1.5
    assert attempt.of_type("validation")[-1]["valid_perplexity"] > 1


def test_pieces_of_a_text_are_never_on_both_sides_of_a_split(filler: Any) -> None:
    content = io.BytesIO(as_jsonl([LONG, SHORT, LONG, SHORT]))
    dataset = encode_examples(content, lambda record: filler.encode(record, 32), "training_file")

    learnt, judged_on = dataset.without(0.5, seed=7)

    lines = [{one.line for one in part} for part in (learnt.examples, judged_on)]
    assert len(dataset.examples) > 40
    assert lines[0] | lines[1] == {1, 2, 3, 4}
    assert [len(each) for each in lines] == [2, 2]


@pytest.mark.parametrize(
    "value", ["No mask here.", "", 3, {"text": ONE_MASK}, ONE_MASK + " on" * 600]
)
def test_refuses_a_wrong_input(filler: Any, value: Any) -> None:
    with pytest.raises(InvalidInput) as error:
        filler.encode_input(value)
    assert error.value.param == "inputs"


@pytest.mark.parametrize(
    "parameters", [{"top_k": 0}, {"targets": []}, {"targets": [""]}, {"temperature": 1}]
)
def test_refuses_a_wrong_parameter(filler: Any, parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as error:
        answered(filler, ONE_MASK, **parameters)
    assert str(error.value.param).startswith("parameters")


def flat(answer: Any) -> list[dict[str, Any]]:
    return [one for row in answer for one in (row if isinstance(row, list) else [row])]
