"""Quantities in the sentences of a FAQ, such as `30 cm`: labels that a pattern gives, and a model
learns in seconds."""

import random
import re
from typing import Any

from tests.support.datasets import faq_texts

_QUANTITY = re.compile(r"\d+(?:[.,]\d+)*(?: (?:mm|cm|m|kg|kr|SEK|years?|days?|hours?|weeks?)\b)?")
_QUESTIONS = ("Which quantity?", "How much is it?", "What is the number?")


def quantity_spans(n: int) -> list[dict[str, Any]]:
    """Return spans records of sentences with at least one quantity."""
    found = []
    for text in _sentences():
        entities = [
            {"start": one.start(), "end": one.end(), "label": "quantity"}
            for one in _QUANTITY.finditer(text)
        ]
        if entities:
            found.append({"text": text, "entities": entities})
    return found[:n]


def quantity_answers(n: int, answerable: float) -> list[dict[str, Any]]:
    """Return question-answer records of sentences with one quantity; the others have none."""
    chosen = random.Random(0)
    with_one, without = list[Any](), list[Any]()
    for text in _sentences():
        quantities = list(_QUANTITY.finditer(text))
        if len(quantities) > 1:
            continue
        answers = {
            "text": [one.group() for one in quantities],
            "answer_start": [one.start() for one in quantities],
        }
        record = {"question": chosen.choice(_QUESTIONS), "context": text, "answers": answers}
        (with_one if quantities else without).append(record)
    num_answerable = round(n * answerable)
    records = with_one[:num_answerable] + without[: n - num_answerable]
    chosen.shuffle(records)
    return records


def _sentences() -> list[str]:
    texts = (one["text"] for one in faq_texts())
    sentences = (part for text in texts for part in re.split(r"(?<=[.!?])\s+", text))
    return [one for one in sentences if 20 < len(one) < 120]
