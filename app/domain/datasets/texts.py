"""Checks of records that hold texts and what is said of them."""

import math
import re
from itertools import pairwise

from app.domain.datasets.faults import WrongRecord, quoted
from app.domain.datasets.records import (
    CompletionRecord,
    FeedbackRecord,
    LabelledTextRecord,
    QuestionAnswerRecord,
    ScoredPairsRecord,
    TaggedTokensRecord,
    TextPairsRecord,
    TextRecord,
    TextSpansRecord,
)

_BIO_TAG = re.compile(r"O|[BI]-.+", re.DOTALL)
_OTHER_SCHEME = re.compile(r"[SELU]-.+", re.DOTALL)


def check_completion(record: CompletionRecord) -> CompletionRecord:
    """Raises: WrongRecord."""
    if not record.completion:
        raise WrongRecord("'completion' is empty; expected the text to learn")
    return record


def check_feedback(record: FeedbackRecord) -> FeedbackRecord:
    """Raises: WrongRecord."""
    if not record.completion:
        raise WrongRecord("'completion' is empty; expected the text that 'label' judges")
    return record


def check_text(record: TextRecord) -> TextRecord:
    """Raises: WrongRecord."""
    check_filled(record.text, "text")
    return record


def check_labelled_text(record: LabelledTextRecord) -> LabelledTextRecord:
    """Raises: WrongRecord."""
    check_filled(record.text, "text")
    if record.text_pair is not None:
        check_filled(record.text_pair, "text_pair")
    if (record.label is None) == (record.labels is None):
        found = "neither" if record.label is None else "both"
        raise WrongRecord(
            f"expected either 'label' (one class, or a number to predict) or 'labels' (a list of "
            f"classes), found {found}"
        )
    if isinstance(record.label, str):
        check_filled(record.label, "label")
    if isinstance(record.label, float):
        _check_finite(record.label, "label")
    for index, label in enumerate(record.labels or ()):
        check_filled(label, f"labels[{index}]")
        if label in record.labels[:index]:  # type: ignore[index]
            raise WrongRecord(f"'labels' names {quoted(label)} twice")
    return record


def agree_on_labels(first: LabelledTextRecord, record: LabelledTextRecord) -> None:
    """Check that a label is of the type that the first one has.

    A whole number among decimal ones is one of them.

    Raises:
        WrongRecord: it is not.
    """
    expected, found = _label_type(first), _label_type(record)
    if expected is found:
        return
    if expected is float and isinstance(record.label, int) and found is int:
        record.label = float(record.label)
        return
    hint = ""
    if (expected, found) == (int, float):
        hint = "; for a number to predict, write the whole ones as 3.0"
    raise WrongRecord(
        f"{_LABEL_TYPE_NAMES[found]}, but the first record has {_LABEL_TYPE_NAMES[expected]}; one "
        f"file has labels of one type{hint}"
    )


_LABEL_TYPE_NAMES: dict[type, str] = {
    str: "'label' is a string",
    bool: "'label' is true or false",
    int: "'label' is a whole number",
    float: "'label' is a decimal number",
    list: "'labels' is a list",
}


def _label_type(record: LabelledTextRecord) -> type:
    return list if record.labels is not None else type(record.label)


def check_tagged_tokens(record: TaggedTokensRecord) -> TaggedTokensRecord:
    """Raises: WrongRecord."""
    if not record.tokens:
        raise WrongRecord("'tokens' is empty; expected at least one word")
    if len(record.tokens) != len(record.tags):
        raise WrongRecord(
            f"'tokens' has {len(record.tokens)} entries and 'tags' {len(record.tags)}; expected "
            "one tag for each token"
        )
    for index, (token, tag) in enumerate(zip(record.tokens, record.tags, strict=True)):
        if not token:
            raise WrongRecord(f"'tokens[{index}]' is empty; expected a word")
        if not _BIO_TAG.fullmatch(tag):
            hint = ""
            if _OTHER_SCHEME.fullmatch(tag):
                hint = " (in BIO, S- and U- are B-, and E- and L- are I-)"
            raise WrongRecord(
                f"'tags[{index}]' is {quoted(tag)}; expected 'O', 'B-<label>' or 'I-<label>'{hint}"
            )
    return record


def check_text_spans(record: TextSpansRecord) -> TextSpansRecord:
    """Raises: WrongRecord."""
    check_filled(record.text, "text")
    length = len(record.text)
    for index, entity in enumerate(record.entities):
        where = f"entities[{index}]"
        check_filled(entity.label, f"{where}.label")
        if not 0 <= entity.start < entity.end <= length:
            raise WrongRecord(
                f"'{where}' goes from {shown_number(entity.start)} to {shown_number(entity.end)}; "
                f"expected start < end within the text's {length} characters"
            )
    order = sorted(range(len(record.entities)), key=lambda index: record.entities[index].start)
    for before, after in pairwise(order):
        if record.entities[after].start < record.entities[before].end:
            raise WrongRecord(
                f"'entities[{after}]' overlaps 'entities[{before}]'; a character has one label"
            )
    return record


def check_question_answer(record: QuestionAnswerRecord) -> QuestionAnswerRecord:
    """Raises: WrongRecord."""
    check_filled(record.question, "question")
    check_filled(record.context, "context")
    texts, starts = record.answers.text, record.answers.answer_start
    if len(texts) != len(starts):
        raise WrongRecord(
            f"'answers.text' has {len(texts)} entries and 'answers.answer_start' {len(starts)}; "
            "expected as many (both empty if the context has no answer)"
        )
    for index, (text, start) in enumerate(zip(texts, starts, strict=True)):
        check_filled(text, f"answers.text[{index}]")
        if start >= 0 and record.context.startswith(text, start):
            continue
        stands = record.context.find(text)
        hint = f"it stands at {stands}" if stands >= 0 else "it is not in the context"
        raise WrongRecord(
            f"'answers.answer_start[{index}]' is {shown_number(start)}, where the context does "
            f"not have the answer {quoted(text)}: {hint}"
        )
    return record


def check_text_pairs(record: TextPairsRecord) -> TextPairsRecord:
    """Raises: WrongRecord."""
    check_filled(record.anchor, "anchor")
    check_filled(record.positive, "positive")
    if record.negative is not None:
        check_filled(record.negative, "negative")
    return record


def check_scored_pairs(record: ScoredPairsRecord) -> ScoredPairsRecord:
    """Raises: WrongRecord."""
    check_filled(record.sentence1, "sentence1")
    check_filled(record.sentence2, "sentence2")
    _check_finite(record.score, "score")
    return record


def check_filled(text: str, where: str) -> None:
    """Raises: WrongRecord: there is nothing but white space."""
    if not text or text.isspace():
        raise WrongRecord(f"'{where}' is empty; expected text")


def shown_number(number: int) -> str:
    # Python refuses to write out an integer of thousands of digits.
    return str(number) if abs(number) < 10**18 else "a number of more than 18 digits"


def _check_finite(number: float, where: str) -> None:
    if not math.isfinite(number):
        raise WrongRecord(f"'{where}' is {number}; expected a finite number")
