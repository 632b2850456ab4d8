"""Extractive answers, compared as SQuAD's official evaluation does.

Rajpurkar et al. 2018, https://arxiv.org/abs/1806.03822: case, punctuation and the English articles
do not count. No library that does without torch or downloads has the script, so its few lines are
here; the tests hold them to numbers of torchmetrics.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

from worker.evaluation.measure import Scored, means

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = frozenset(string.punctuation)


def score(references: Sequence[Sequence[str]], predictions: Sequence[str]) -> Scored:
    """Score one predicted answer a row.

    Args:
        references: for each row the accepted answers; none where there is no answer.
        predictions: for each row the answer; "" says that there is none.
    """
    exact, overlap = [], []
    for accepted, predicted in zip(references, predictions, strict=True):
        word_lists = [words for words in map(_words, accepted) if words] or [[]]
        found = _words(predicted)
        exact.append(float(found in word_lists))
        overlap.append(max(_f1(words, found) for words in word_lists))
    return Scored(len(exact), (means(exact_match=exact, answer_f1=overlap),))


def _words(text: str) -> list[str]:
    letters = "".join(letter for letter in text.lower() if letter not in _PUNCTUATION)
    return _ARTICLES.sub(" ", letters).split()


def _f1(expected: list[str], found: list[str]) -> float:
    if not expected or not found:
        return float(expected == found)
    num_shared = (Counter(expected) & Counter(found)).total()
    return 2 * num_shared / (len(expected) + len(found))
