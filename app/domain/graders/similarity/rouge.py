"""ROUGE by rouge-score, Google's own (Lin 2004): F1 of shared runs of words, without stemming."""

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from app.domain.graders.grading import GradingFailed

# ROUGE-L makes a table of every word by every other.
MAX_WORDS_OF_L = 2_000

_TOKENIZER = DefaultTokenizer(use_stemmer=False)
_SCORERS = {
    name: RougeScorer([name], tokenizer=_TOKENIZER)
    for name in ("rouge1", "rouge2", "rouge3", "rouge4", "rouge5", "rougeL")
}


def rouge_1(text: str, reference: str) -> float:
    return _rouge("rouge1", text, reference)


def rouge_2(text: str, reference: str) -> float:
    return _rouge("rouge2", text, reference)


def rouge_3(text: str, reference: str) -> float:
    return _rouge("rouge3", text, reference)


def rouge_4(text: str, reference: str) -> float:
    return _rouge("rouge4", text, reference)


def rouge_5(text: str, reference: str) -> float:
    return _rouge("rouge5", text, reference)


def rouge_l(text: str, reference: str) -> float:
    """F1 of the longest common subsequence of words."""
    if any(len(_TOKENIZER.tokenize(one)) > MAX_WORDS_OF_L for one in (text, reference)):
        raise GradingFailed(
            "truncated_observation_error",
            f"a text to compare has more than {MAX_WORDS_OF_L:,} words",
        )
    return _rouge("rougeL", text, reference)


def _rouge(name: str, text: str, reference: str) -> float:
    # Its words are made of a-z and 0-9: of another script nothing would be left, and the score
    # would be 0 whatever was answered.
    if reference.strip() and not _TOKENIZER.tokenize(reference):
        raise GradingFailed("other_error", "the reference has no word of a-z or 0-9 for ROUGE")
    return float(_SCORERS[name].score(reference, text)[name].fmeasure)
