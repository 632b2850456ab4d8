from functools import cache
from math import inf, nan

import msgspec
import numpy as np
import pytest

from worker.evaluation import averages, classification, generation, language
from worker.evaluation.comparison import compare
from worker.evaluation.markdown import to_markdown
from worker.evaluation.measure import Scored, joined
from worker.evaluation.report import HeldOut, Report
from worker.evaluation.worst_rows import WorstRow, suspects, worst_rows

LABELS = ("bug", "praise")


@cache
def sentiment(seed: int, signal: float, rows: int = 60) -> Scored:
    truths = np.arange(rows) % 2
    scores = np.random.default_rng(seed).random((rows, 2)) + signal * np.eye(2)[truths]
    return classification.score_single_label(
        LABELS, truths, scores / scores.sum(axis=1, keepdims=True)
    )


compare_once = cache(compare)


def report(base: Scored, tuned: Scored, **changes: object) -> Report:
    fields = {
        "job_id": "ftjob-1",
        "base_model": "minilm",
        "tuned_model": "ft:minilm:org:mood:1",
        "task": "text-classification",
        "method": "supervised",
        "training_rows": 1_234,
        "held_out": HeldOut("training_file", "file-1", base.rows, share=0.1, seed=7),
        "bootstrap_seed": 0,
        "best_step": 40,
        "best_metric": "f1_macro",
        "refusal": None,
        "comparison": compare_once(base, tuned),
        "worst_rows": (),
    }
    return Report(**(fields | changes))  # type: ignore[arg-type]


def test_a_report_survives_the_file_and_its_keys_keep_their_order() -> None:
    made = report(
        sentiment(0, 0.0),
        sentiment(1, 1.0),
        worst_rows=(WorstRow(3, None, "bug", "praise", "too slow", 0.9, True),),
    )
    text = made.to_json()
    assert Report.from_json(text) == made
    assert (
        text == report(sentiment(0, 0.0), sentiment(1, 1.0), worst_rows=made.worst_rows).to_json()
    )
    assert list(msgspec.json.decode(text)) == list(Report.__struct_fields__)


def test_a_diverged_model_makes_a_report_without_nan() -> None:
    broken = language.score([nan] * 12, [1] * 12, [0] * 12)
    made = report(language.score([1.0] * 12, [1] * 12, [1] * 12), broken)
    text = made.to_json()
    assert b"NaN" not in text
    assert b"Infinity" not in text
    assert Report.from_json(text) == made
    assert "| loss | lower | 1.000 [1.000, 1.000] | undefined | undefined |  |" in (
        to_markdown(made)
    )


def test_the_page_says_what_was_measured_on_what_and_whether_it_got_better() -> None:
    page = to_markdown(report(sentiment(0, 0.0), sentiment(1, 1.0)))
    assert page.startswith("# ft:minilm:org:mood:1\n")
    assert "1,234 rows learnt from, 60 held out (10% of file-1, seed 7)" in page
    assert "Evaluated after step 40, the best by f1_macro." in page
    (line,) = [line for line in page.splitlines() if line.startswith("| accuracy |")]
    assert line.endswith("| better |")
    assert "| +0." in line
    assert "| bug | " in page
    assert "- accuracy: Share of rows that are right" in page


def test_the_page_says_why_a_model_was_not_deployed() -> None:
    made = report(
        sentiment(0, 1.0),
        sentiment(1, 0.0),
        tuned_model=None,
        refusal="accuracy is 0.5 against 0.9 of the base model",
    )
    page = to_markdown(made)
    assert page.startswith("# ftjob-1\n")
    assert "**Not deployed:** accuracy is 0.5 against 0.9 of the base model." in page
    assert "| worse |" in page


def test_the_page_warns_of_few_rows() -> None:
    page = to_markdown(report(sentiment(0, 0.0, rows=4), sentiment(1, 1.0, rows=4)))
    assert "4 held-out rows are too few for intervals" in page
    assert "[" not in page.split("## Tuned")[0].split("| metric |")[1]


@pytest.mark.parametrize(
    ("held_out", "said"),
    [
        (HeldOut("validation_file", "file-2", 60), "60 held out (all of file-2)"),
        (HeldOut("training_file", "file-1", 60), "60 held out (file-1)"),
    ],
)
def test_the_page_says_where_the_rows_came_from(held_out: HeldOut, said: str) -> None:
    assert said in to_markdown(report(sentiment(0, 0.0), sentiment(1, 1.0), held_out=held_out))


def test_what_a_users_file_holds_cannot_break_the_page() -> None:
    row = WorstRow(1, 2.0, "a|b", "*x*", "<script>\n\n# head | [link](http://x) `code`" + "z" * 200)
    page = to_markdown(report(sentiment(0, 0.0), sentiment(1, 1.0), worst_rows=(row,)))
    (line,) = [line for line in page.splitlines() if line.startswith("| 1 | 2.000 |")]
    assert r"| a\|b | \*x\* |" in line
    assert r"\<script\> \# head \| \[link\](http://x) \`code\`" in line
    assert line.endswith("… |")


def test_notes_of_the_metrics_are_on_the_page() -> None:
    texts = ["one two three four"] * 12
    scored = joined(language.score([1.0] * 12, [4] * 12), generation.score(texts, texts))
    made = report(scored, scored, best_metric=None)
    page = to_markdown(made)
    assert "- bleu: sacrebleu, nrefs:1|" in page
    assert "Evaluated after the last step, 40." in page
    assert "Evaluated" not in to_markdown(report(scored, scored, best_step=None))


def test_the_worst_rows_come_first_and_are_cut() -> None:
    found = worst_rows(
        rows=[11, 12, 13, 14],
        losses=[0.5, 3.0, nan, 3.0],
        expected=["a"] * 4,
        predicted=["b"] * 4,
        excerpts=["short", "x" * 1_000, "broken", "same"],
        limit=3,
    )
    assert [(one.row, one.loss) for one in found] == [(13, None), (12, 3.0), (14, 3.0)]
    assert len(found[1].excerpt) == 240
    assert found[1].excerpt.endswith("x…")
    assert found[1].confidence is None
    assert not found[1].is_likely_label_error


def test_a_row_is_suspected_where_the_model_is_as_sure_as_of_that_classs_own_rows() -> None:
    probabilities = np.array(
        [
            [0.9, 0.1],
            [0.8, 0.2],
            [0.1, 0.9],
            [0.2, 0.8],
            [0.05, 0.95],  # Labelled 0, and surer of 1 than the rows of 1 are.
            [0.45, 0.55],  # Labelled 0 and wrong, but not sure: a hard row.
        ]
    )
    assert suspects([0, 0, 1, 1, 0, 0], probabilities) == [False] * 4 + [True, False]


def test_flipped_labels_are_found() -> None:
    generator = np.random.default_rng(0)
    truths = generator.integers(0, 3, 300)
    logits = generator.normal(size=(300, 3)) + 4 * np.eye(3)[truths]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = truths.copy()
    flipped = generator.choice(300, 10, replace=False)
    labels[flipped] = (labels[flipped] + 1) % 3
    losses = classification.log_losses(labels, probabilities)
    names = [f"class {label}" for label in labels]
    found = worst_rows(
        rows=list(range(300)),
        losses=losses,
        expected=names,
        predicted=names,
        excerpts=names,
        confidences=probabilities.max(axis=1).tolist(),
        is_suspect=suspects(labels, probabilities),
        limit=10,
    )
    likely = {one.row for one in found if one.is_likely_label_error}
    assert len(likely & set(flipped.tolist())) >= 7
    assert len(likely - set(flipped.tolist())) <= 2


def test_a_class_that_no_row_is_labelled_with_suspects_nobody() -> None:
    assert suspects([0], [[0.1, 0.9]]) == [False]
    assert suspects([0], [[nan, nan]]) == [False]


def test_a_loss_beyond_all_numbers_is_null() -> None:
    (found,) = worst_rows([1], [inf], ["a"], ["b"], ["c"])
    assert msgspec.json.decode(msgspec.json.encode(found))["loss"] is None


def test_an_average_may_stand_alone_in_a_report() -> None:
    scored = averages.score(reward=[0.0, 1.0] * 6)
    assert "| reward | higher |" in to_markdown(report(scored, scored))
