"""Generated text against a reference: BLEU and chrF (sacrebleu), ROUGE (rouge-score)."""

from collections.abc import Sequence

import numpy as np
import regex
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.base import Metric
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from worker.evaluation.measure import Draws, Floats, Scored, Scorer, means, sums

_ROUGE = ("rouge1", "rouge2", "rougeL")
_HAN = r"\p{Han}"
# Scripts that put no space between words are cut into characters.
_UNSPACED = rf"[{_HAN}\p{{Hiragana}}\p{{Katakana}}\p{{Thai}}\p{{Lao}}\p{{Khmer}}\p{{Myanmar}}]"
_WORD = regex.compile(rf"{_UNSPACED}|(?:(?!{_UNSPACED})[\p{{L}}\p{{M}}\p{{N}}])+")


def score(references: Sequence[str], predictions: Sequence[str]) -> Scored:
    """Score one generated text a row against one reference."""
    bleu, chrf = BLEU(tokenize=_tokenizer(references)), CHRF()
    return Scored(
        rows=len(references),
        scorers=(
            _of_whole_set("bleu", bleu, references, predictions),
            _of_whole_set("chrf", chrf, references, predictions),
            means(**_rouge(references, predictions)),
        ),
        notes=(
            f"bleu: sacrebleu, {bleu.get_signature()}",
            f"chrf: sacrebleu, {chrf.get_signature()}",
            "rouge: rouge-score, words of any script in lower case, no stemming",
        ),
    )


class _Words:
    """The tokenizer of ROUGE: the default one's words in English, and those of other scripts too.

    The default one knows the letters a to z alone: text in another script would score 0.
    """

    def tokenize(self, text: str) -> list[str]:
        words: list[str] = _WORD.findall(text.lower())
        return words


def _of_whole_set(
    name: str, metric: Metric, references: Sequence[str], predictions: Sequence[str]
) -> Scorer:
    """Return the scorer of a metric that is not a mean of rows: it sums counts, then divides.

    The two methods that start with an underscore are those by which sacrebleu's own significance
    test draws its bootstrap samples; a drawing costs 0.1 ms with them, and with the public one as
    much as the whole set.
    """
    counts = np.array(
        metric._extract_corpus_statistics(list(predictions), [list(references)]), np.float64
    )

    def score_draws(draws: Draws) -> dict[str, Floats]:
        totals = sums(draws, counts).astype(np.int64).tolist()
        return {name: np.array([metric._compute_score_from_stats(one).score for one in totals])}

    return Scorer(score_draws)


def _rouge(references: Sequence[str], predictions: Sequence[str]) -> dict[str, Floats]:
    scorer = RougeScorer(list(_ROUGE), tokenizer=_Words())
    found = [
        scorer.score(expected, text) for expected, text in zip(references, predictions, strict=True)
    ]
    return {name: np.array([one[name].fmeasure for one in found], np.float64) for name in _ROUGE}


def _tokenizer(texts: Sequence[str]) -> str:
    """Return sacrebleu's tokenizer for the script that most letters are of."""

    def count(pattern: str) -> int:
        return sum(len(regex.findall(pattern, text)) for text in texts)

    num_letters = count(r"\p{L}")
    if 2 * count(_UNSPACED) <= num_letters:
        return "13a"
    return "zh" if 2 * count(_HAN) > num_letters and not count(r"\p{Hiragana}") else "char"
