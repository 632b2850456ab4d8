"""The Swedish Construction FAQ by Zaragoza AB (CC BY 4.0): 497 questions and answers, as records.

What a record claims is true of the data: a question's own answer is right, another's is not.
Preferences and scores are made that way, by us; nobody has judged them one by one.
"""

import itertools
import json
import random
from collections import Counter
from functools import lru_cache
from typing import Any

from tests.support.packages import SEED, Package, cut, first, unpacked

Entry = dict[str, str]

_PACKAGE = Package(
    "zaragoza-construction-faq==1.2.1",
    "716a1999dd5ad8494c6a4e47d3510f017aa767ea9e55d3b348b0ad70b0e8d3d7",
)
_FILES = {"en": "faq-en.jsonl", "sv": "faq.jsonl"}
_PASSAGES = 3
# What lies in examples/faq: the first so many records are for training, the rest is held out.
_EXAMPLES = {"completions": (200, 40), "categories": (196, 40), "text-pairs": (200, 40)}


def faq(n: int | None = None, language: str = "en") -> list[Entry]:
    """Return questions, their answers and categories, in an order that mixes the categories."""
    return cut(_entries(language), n)


def faq_chats(n: int | None = None) -> list[dict[str, Any]]:
    """Return chat records."""
    return [
        {
            "messages": [
                {"role": "user", "content": one["question"]},
                {"role": "assistant", "content": one["answer"]},
            ]
        }
        for one in faq(n)
    ]


def faq_completions(n: int | None = None) -> list[dict[str, Any]]:
    """Return completion records: a question and its answer."""
    return [{"prompt": one["question"], "completion": one["answer"]} for one in faq(n)]


def faq_translations(n: int | None = None) -> list[dict[str, Any]]:
    """Return completion records: a Swedish question and the same in English."""
    # Both are shuffled alike.
    pairs = zip(faq(n, "sv"), faq(n, "en"), strict=True)
    return [{"prompt": sv["question"], "completion": en["question"]} for sv, en in pairs]


def faq_texts(n: int | None = None) -> list[dict[str, Any]]:
    """Return text records: the answers."""
    return [{"text": one["answer"]} for one in faq(n)]


def faq_categories(n: int | None = None, categories: int = 10) -> list[dict[str, Any]]:
    """Return labelled texts: a question and its category, of the so many largest ones."""
    entries = faq()
    largest = dict(Counter(one["category"] for one in entries).most_common(categories))
    labelled = [
        {"text": one["question"], "label": one["category"]}
        for one in entries
        if one["category"] in largest
    ]
    return first(labelled, n)


def faq_text_pairs(n: int | None = None) -> list[dict[str, Any]]:
    """Return text pairs: a question, and its answer as what means the same."""
    return [{"anchor": one["question"], "positive": one["answer"]} for one in faq(n)]


def faq_scored_pairs(n: int | None = None) -> list[dict[str, Any]]:
    """Return scored pairs: a question with its own answer (1), or one of another category (0)."""
    return [
        {
            "sentence1": one["question"],
            "sentence2": (one if is_own else _others(one, 1, is_of_category=False)[0])["answer"],
            "score": float(is_own),
        }
        for one, is_own in zip(faq(n), itertools.cycle([True, False]), strict=False)
    ]


def faq_question_answers(n: int | None = None, answerable: float = 1.0) -> list[dict[str, Any]]:
    """Return SQuAD's records: which of three passages answers the question.

    The passages are answers of one category and the span is a whole one of them. In the share that
    is not answerable, the right one is not among them.
    """
    chosen = random.Random(SEED)
    records = []
    for one in faq(n):
        is_answerable = chosen.random() < answerable
        others = _others(one, _PASSAGES, is_of_category=True)
        passages = [other["answer"] for other in others]
        if is_answerable:
            passages[chosen.randrange(_PASSAGES)] = one["answer"]
        context = "\n".join(passages)
        starts = [context.index(one["answer"])] if is_answerable else []
        answers = {"text": [one["answer"]] * len(starts), "answer_start": starts}
        records.append({"question": one["question"], "context": context, "answers": answers})
    return records


def faq_preferences(n: int | None = None) -> list[dict[str, Any]]:
    """Return preferences: a question's own answer over one of the same category."""
    return [
        {
            "input": {"messages": [{"role": "user", "content": one["question"]}]},
            "preferred_output": [{"role": "assistant", "content": one["answer"]}],
            "non_preferred_output": [{"role": "assistant", "content": worse["answer"]}],
        }
        for one in faq(n)
        for worse in _others(one, 1, is_of_category=True)
    ]


def example_files() -> dict[str, list[dict[str, Any]]]:
    """Return the records of each file of `examples/faq`."""
    made = {
        "completions": faq_completions,
        "categories": faq_categories,
        "text-pairs": faq_text_pairs,
    }
    files = {}
    for name, (train, heldout) in _EXAMPLES.items():
        records = made[name](train + heldout)
        files[f"{name}-train.jsonl"] = records[:train]
        files[f"{name}-heldout.jsonl"] = records[train:]
    return files


@lru_cache
def _entries(language: str) -> tuple[Entry, ...]:
    """Read the entries. Of a question that stands in two categories, the first is taken."""
    by_question: dict[str, dict[str, Any]] = {}
    for english, one in zip(_lines("en"), _lines(language), strict=True):
        by_question.setdefault(english["q"], one)
    return tuple(
        {"question": one["q"], "answer": one["a"], "category": one["category"]}
        for one in by_question.values()
    )


def _lines(language: str) -> list[dict[str, Any]]:
    # Both languages have the same entries in the same order.
    directory = unpacked(_PACKAGE) / "zaragoza_construction_faq" / "data"
    lines = (directory / _FILES[language]).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line]


def _others(entry: Entry, count: int, *, is_of_category: bool) -> list[Entry]:
    candidates = [
        other
        for other in _entries("en")
        if (other["category"] == entry["category"]) == is_of_category
        and other["question"] != entry["question"]
    ]
    return random.Random(entry["question"]).sample(candidates, count)
