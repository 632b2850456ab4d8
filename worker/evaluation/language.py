"""Language modelling: loss, perplexity and token accuracy, over tokens; intervals over rows."""

import numpy as np
from numpy.typing import ArrayLike

from worker.evaluation.measure import Draws, Floats, Scored, Scorer, sums


def score(losses: ArrayLike, tokens: ArrayLike, correct: ArrayLike | None = None) -> Scored:
    """Score predicted tokens.

    Args:
        losses: [rows], each row's negative log-likelihood in nats, summed over its learnt tokens.
        tokens: [rows], how many tokens (or how much weight) that sum is over.
        correct: [rows], how many of them were the most likely token; None if it was not counted.
    """
    columns = np.stack(
        [np.asarray(one, np.float64) for one in (losses, tokens, correct) if one is not None],
        axis=1,
    )

    def score_draws(draws: Draws) -> dict[str, Floats]:
        totals = sums(draws, columns).T
        # A row may carry no learnt token, and a diverged model's perplexity may overflow.
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            shares = totals / totals[1]
            found = {"loss": shares[0], "perplexity": np.exp(shares[0])}
        return found if correct is None else found | {"token_accuracy": shares[2]}

    return Scored(len(columns), (Scorer(score_draws),))
