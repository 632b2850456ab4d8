"""Transcribed speech: word and character error rates (jiwer).

Case and punctuation count, as they do for whoever reads the transcript. A rate that is to be
compared with a leaderboard's needs both texts normalised in the same way before.
"""

from collections.abc import Sequence

import numpy as np
from jiwer import CharacterOutput, WordOutput, process_characters, process_words

from worker.evaluation.measure import Draws, Floats, Scored, Scorer, sums


def score(references: Sequence[str], predictions: Sequence[str]) -> Scored:
    """Score one transcript a row; the rates are over all words and characters of the set."""
    pairs = list(zip(references, predictions, strict=True))
    words = np.array([_errors_and_length(process_words(*pair)) for pair in pairs])
    characters = np.array([_errors_and_length(process_characters(*pair)) for pair in pairs])

    def score_draws(draws: Draws) -> dict[str, Floats]:
        return {"wer": _rate(sums(draws, words)), "cer": _rate(sums(draws, characters))}

    return Scored(len(pairs), (Scorer(score_draws),))


def _errors_and_length(alignment: WordOutput | CharacterOutput) -> tuple[float, float]:
    missed = alignment.substitutions + alignment.deletions
    return float(missed + alignment.insertions), float(alignment.hits + missed)


def _rate(totals: Floats) -> Floats:
    """Return errors per word [drawings]; undefined where nothing was said."""
    errors, length = totals.T
    rates: Floats = np.divide(errors, length, out=np.full(len(errors), np.nan), where=length > 0)
    return rates
