"""Each family of metrics against its library, its formula's reference, or a sum done by hand."""

from math import isnan, log2, nan

import jiwer
import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import spearmanr
from sklearn import metrics

from worker.evaluation import (
    answers,
    entities,
    generation,
    regression,
    retrieval,
    transcription,
)
from worker.evaluation.entities import entities_of_tags
from worker.evaluation.measure import evaluate, resample, values

EXPECTED = ["the cat sat on the mat", "a dog barked at the postman", "it rains in Spain again"]
WRITTEN = ["the cat sat on a mat", "the dog barked at him", "it rains in Spain today, again"]


def draws_of(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, rows, (1_000, rows))


def test_regression_is_scikit_learns_and_scipys() -> None:
    generator = np.random.default_rng(0)
    true = generator.normal(size=40)
    predicted = true + generator.normal(size=40)
    scored = regression.score(true, predicted)
    assert values(scored) == pytest.approx(
        {
            "mse": metrics.mean_squared_error(true, predicted),
            "rmse": metrics.root_mean_squared_error(true, predicted),
            "mae": metrics.mean_absolute_error(true, predicted),
            "r2": metrics.r2_score(true, predicted),
            "spearman": spearmanr(true, predicted).statistic,
        }
    )
    drawn, found = draws_of(40, 3)[17], resample(scored, seed=3)
    assert found["r2"][17] == pytest.approx(metrics.r2_score(true[drawn], predicted[drawn]))
    assert found["spearman"][17] == pytest.approx(spearmanr(true[drawn], predicted[drawn])[0])


@pytest.mark.parametrize("true", [[2.0], [2.0, 2.0, 2.0]])
def test_a_constant_target_leaves_nothing_to_explain(true: list[float]) -> None:
    found = values(regression.score(true, [3.0] * len(true)))
    assert found["mae"] == 1.0
    assert isnan(found["r2"])
    assert isnan(found["spearman"])


def test_a_prediction_that_is_not_a_number_leaves_no_error() -> None:
    evaluation = evaluate(regression.score([1.0, 2.0], [nan, 2.0]))
    assert [one.value for one in evaluation.metrics] == [None] * 5


def test_an_entity_counts_when_bounds_and_label_are_right() -> None:
    true = [{(0, 2, "PER"), (5, 6, "LOC")}, {(1, 3, "PER")}, set()]
    found = [{(0, 2, "PER"), (5, 6, "ORG")}, {(1, 4, "PER")}, {(0, 1, "LOC")}]
    scored = entities.score(true, found)
    assert values(scored) == pytest.approx(
        {"entity_precision": 1 / 4, "entity_recall": 1 / 3, "entity_f1": 2 / 7}
    )
    assert [(one.label, one.precision, one.recall, one.rows) for one in scored.per_class] == [
        ("LOC", 0.0, 0.0, 1),
        ("ORG", 0.0, 0.0, 0),
        ("PER", 0.5, 0.5, 2),
    ]


def test_a_model_that_finds_no_entity_scores_zero_and_without_any_there_is_no_score() -> None:
    assert values(entities.score([{(0, 1, "PER")}], [set()])) == {
        "entity_precision": 0.0,
        "entity_recall": 0.0,
        "entity_f1": 0.0,
    }
    nothing = entities.score([set(), set()], [set(), set()])
    assert all(isnan(value) for value in values(nothing).values())
    assert nothing.per_class == ()


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("B-PER I-PER O B-LOC", [(0, 2, "PER"), (3, 4, "LOC")]),
        ("B-PER B-PER", [(0, 1, "PER"), (1, 2, "PER")]),
        ("I-PER I-LOC I-LOC", [(0, 1, "PER"), (1, 3, "LOC")]),
        ("B-PER O I-PER", [(0, 1, "PER"), (2, 3, "PER")]),
        ("B-top-level I-top-level", [(0, 2, "top-level")]),
        ("O O", []),
        ("", []),
    ],
)
def test_entities_are_read_from_tags(tags: str, found: list[tuple[int, int, str]]) -> None:
    assert entities_of_tags(tags.split()) == found


@pytest.mark.parametrize(
    ("accepted", "answer", "exact", "overlap"),
    [
        (["the Eiffel Tower"], "Eiffel Tower!", 1, 1),
        (["Denver Broncos", "The Denver Broncos won"], "denver broncos won it", 0, 6 / 7),
        (["in 1998"], "1999", 0, 0),
        (["a cat and a cat"], "cat", 0, 1 / 2),
        ([], "", 1, 1),
        ([], "something", 0, 0),
        (["something"], "", 0, 0),
        (["the"], "a", 1, 1),
        (["naïve café"], "naive cafe", 0, 0),
        (["北京"], "北京", 1, 1),
        (["the cat's whiskers"], "cats whiskers an", 1, 1),
    ],
)
def test_answers_are_compared_as_squad_does(
    accepted: list[str], answer: str, exact: float, overlap: float
) -> None:
    # The numbers are those that torchmetrics 1.9 gives for these answers.
    found = values(answers.score([accepted], [answer]))
    assert found == pytest.approx({"exact_match": exact, "answer_f1": overlap})


def test_answers_are_averaged_over_questions() -> None:
    found = values(answers.score([["red"], ["blue sky"]], ["red", "blue"]))
    assert found == pytest.approx({"exact_match": 0.5, "answer_f1": (1 + 2 / 3) / 2})


def test_generated_text_is_scored_by_sacrebleu_and_rouge_score() -> None:
    found = values(generation.score(EXPECTED, WRITTEN))
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(WRITTEN, [EXPECTED]).score)
    assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(WRITTEN, [EXPECTED]).score)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    for name in ("rouge1", "rouge2", "rougeL"):
        rows = [
            scorer.score(one, text)[name].fmeasure
            for one, text in zip(EXPECTED, WRITTEN, strict=True)
        ]
        assert found[name] == pytest.approx(np.mean(rows))


def test_a_drawing_of_texts_has_the_bleu_of_that_corpus() -> None:
    found = resample(generation.score(EXPECTED * 4, WRITTEN * 4), seed=4)
    for place, drawn in enumerate(draws_of(12, 4)[:10]):
        expected, written = [EXPECTED[k % 3] for k in drawn], [WRITTEN[k % 3] for k in drawn]
        bleu, chrf = sacrebleu.corpus_bleu, sacrebleu.corpus_chrf
        assert found["bleu"][place] == pytest.approx(bleu(written, [expected]).score)
        assert found["chrf"][place] == pytest.approx(chrf(written, [expected]).score)


@pytest.mark.parametrize(
    ("texts", "tokenizer"),
    [
        (["你好世界,天气很好", "我们去北京"], "zh"),
        (["東京へ行きました。とても楽しかったです"], "char"),
        (["สวัสดีชาวโลก"], "char"),
        (["Здравствуй, мир, как дела"], "13a"),
        (["plain English in four words", "with 一"], "13a"),
        ([""], "13a"),
    ],
)
def test_the_tokenizer_of_bleu_follows_the_script_and_is_told(
    texts: list[str], tokenizer: str
) -> None:
    scored = generation.score(texts, texts)
    assert f"|tok:{tokenizer}|" in scored.notes[0]
    found = values(scored)
    if texts != [""]:
        assert found["bleu"] == pytest.approx(100)
        assert found["rouge1"] == 1.0


def test_chinese_text_is_scored_by_its_characters() -> None:
    found = values(generation.score(["今天天气很好"], ["今天天气不错"]))
    assert found["rouge1"] == pytest.approx(4 / 6)
    assert found["rougeL"] == pytest.approx(4 / 6)


def test_nothing_written_scores_nothing() -> None:
    found = values(generation.score(EXPECTED, ["", "", ""]))
    assert set(found.values()) == {0.0}


def test_error_rates_are_over_all_words_of_the_set() -> None:
    found = values(transcription.score(EXPECTED, WRITTEN))
    assert found["wer"] == pytest.approx(jiwer.wer(EXPECTED, WRITTEN))
    assert found["cer"] == pytest.approx(jiwer.cer(EXPECTED, WRITTEN))


def test_words_that_nobody_said_are_errors_and_silence_alone_has_no_rate() -> None:
    found = values(transcription.score(["two words", ""], ["two words", "three more words"]))
    assert found["wer"] == pytest.approx(3 / 2)
    assert all(isnan(rate) for rate in values(transcription.score([""], ["noise"])).values())


def test_partners_are_ranked_among_all_candidates() -> None:
    # Ranks of the partners on the diagonal: 1, 2, 3.
    similarities = [[0.9, 0.1, 0.2], [0.8, 0.7, 0.1], [0.5, 0.4, 0.3]]
    found = values(retrieval.score(similarities))
    assert found == pytest.approx(
        {
            "recall_at_1": 1 / 3,
            "recall_at_5": 1.0,
            "recall_at_10": 1.0,
            "mrr": (1 + 1 / 2 + 1 / 3) / 3,
            "ndcg": (1 + 1 / log2(3) + 1 / log2(4)) / 3,
        }
    )


def test_a_model_that_finds_everything_alike_does_not_score() -> None:
    found = values(retrieval.score(np.ones((20, 20))))
    assert found["recall_at_1"] == found["recall_at_10"] == 0.0
    assert found["mrr"] == pytest.approx(1 / 20)


def test_a_duplicate_of_the_partner_belongs_to_the_anchor_too() -> None:
    texts = ["same", "other", "same"]
    equal = retrieval.same_texts(texts)
    assert equal.tolist() == [[True, False, True], [False, True, False], [True, False, True]]
    similarities = [[0.9, 0.1, 0.9], [0.1, 0.9, 0.1], [0.9, 0.1, 0.9]]
    found = values(retrieval.score(similarities, equal))
    assert found["mrr"] == found["ndcg"] == found["recall_at_5"] == 1.0
    assert values(retrieval.score(similarities))["mrr"] < 1.0


def test_one_candidate_is_found_and_has_no_ranking() -> None:
    evaluation = evaluate(retrieval.score([[0.3]]))
    assert evaluation.value("recall_at_1") == 1.0
    assert evaluation.value("ndcg") is None


def test_embeddings_that_are_not_numbers_find_nothing() -> None:
    evaluation = evaluate(retrieval.score(np.full((3, 3), nan)))
    assert {one.value for one in evaluation.metrics} == {None}


def test_scored_pairs_are_compared_by_rank() -> None:
    assert values(retrieval.score_pairs([0, 1, 2, 5], [0.1, 0.2, 0.3, 0.35])) == {
        "spearman": pytest.approx(1.0)
    }


def test_a_constant_sample_leaves_the_others_their_correlation() -> None:
    true = np.array([1.0] * 9 + [2.0])
    predicted = np.arange(10.0)
    found = resample(regression.score(true, predicted), seed=4)["spearman"]
    draws = np.random.default_rng(4).integers(0, 10, (1_000, 10))
    is_varied = np.array([np.ptp(true[drawn]) > 0 for drawn in draws])
    assert 0 < is_varied.sum() < 1_000
    assert np.isnan(found[~is_varied]).all()
    for drawn, correlation in zip(draws[is_varied][:50], found[is_varied], strict=False):
        assert correlation == pytest.approx(spearmanr(true[drawn], predicted[drawn])[0])
