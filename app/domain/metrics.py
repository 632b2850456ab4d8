"""What each metric means, and which way is better: the one list that every process asks.

Best-checkpoint selection, early stopping, `deploy_if` and the report all look here, so that none of
them guesses a direction from a name. Names are those of the field's own libraries.
"""

from dataclasses import dataclass
from math import isfinite

from app.domain.registry import Registry


@dataclass(frozen=True, slots=True)
class Metric:
    """One number that a model is judged by.

    Attributes:
        is_higher_better: whether a better model has the larger value.
        meaning: one sentence for reports and for the OpenAPI document.
    """

    is_higher_better: bool
    meaning: str

    def gain(self, before: float | None, after: float | None) -> float | None:
        """Return by how much `after` is the better value; below zero it is the worse one.

        None stands for a value that could not be computed, and so does what is not finite: there
        is no gain over it or with it.
        """
        if before is None or after is None or not (isfinite(before) and isfinite(after)):
            return None
        return after - before if self.is_higher_better else before - after

    def is_improved(
        self, before: float | None, after: float | None, min_delta: float = 0.0
    ) -> bool:
        """Tell whether `after` is better than `before` by more than `min_delta`.

        Any number improves on none, so that the first measurement of a run is its best so far.
        """
        if after is None or not isfinite(after):
            return False
        if before is None or not isfinite(before):
            return True
        return (self.gain(before, after) or 0.0) > min_delta


METRICS: Registry[Metric] = Registry("metric")


def _add(is_higher_better: bool, meanings: dict[str, str]) -> None:
    for name, meaning in meanings.items():
        METRICS.add(name, Metric(is_higher_better, meaning))


_add(
    False,
    {
        "loss": "Mean negative log-likelihood of what was to be predicted, in nats.",
        "perplexity": "Exponential of the loss per token: among how many tokens the model wavers.",
        "mse": "Mean squared error.",
        "rmse": "Root of the mean squared error, in the target's own unit.",
        "mae": "Mean absolute error, in the target's own unit.",
        "wer": "Word error rate: words to be changed, per word that was said.",
        "cer": "Character error rate: characters to be changed, per character that was said.",
    },
)
_add(
    True,
    {
        "token_accuracy": "Share of tokens that were the most likely one.",
        "accuracy": "Share of rows that are right; with several labels a row, all must be right.",
        "precision_macro": "Share of predictions of a class that are right, mean over classes.",
        "precision_micro": "Share of all predicted labels that are right.",
        "precision_weighted": "Precision, mean over classes weighted by their rows.",
        "recall_macro": "Share of a class's rows that were found, mean over classes.",
        "recall_micro": "Share of all true labels that were found.",
        "recall_weighted": "Recall, mean over classes weighted by their rows.",
        "f1_macro": "Harmonic mean of precision and recall, mean over classes.",
        "f1_micro": "Harmonic mean of precision and recall over all labels.",
        "f1_weighted": "F1, mean over classes weighted by their rows.",
        "mcc": "Matthews' correlation coefficient: 1 is perfect, 0 is chance.",
        "roc_auc": "Chance that a row of a class ranks above one of the others; 0.5 is chance.",
        "r2": "Share of the target's variance that is explained; 0 is the constant mean.",
        "spearman": "Rank correlation of predictions and targets, from -1 to 1.",
        "entity_precision": "Share of predicted entities whose bounds and label are right.",
        "entity_recall": "Share of true entities that were found with their bounds and label.",
        "entity_f1": "Harmonic mean of the precision and the recall of whole entities.",
        "exact_match": "Share of answers that equal an accepted one, as SQuAD compares them.",
        "answer_f1": "F1 of the words shared with the closest accepted answer, as in SQuAD.",
        "bleu": "BLEU of the whole set, from 0 to 100, as sacrebleu computes it.",
        "chrf": "chrF of the whole set: shared runs of characters, from 0 to 100.",
        "rouge1": "F1 of shared words, mean over rows.",
        "rouge2": "F1 of shared pairs of words, mean over rows.",
        "rougeL": "F1 of the longest common subsequence of words, mean over rows.",
        "recall_at_1": "Share of what belongs to an anchor that is ranked first.",
        "recall_at_5": "Share of what belongs to an anchor that is among the first 5.",
        "recall_at_10": "Share of what belongs to an anchor that is among the first 10.",
        "mrr": "Mean over anchors of 1 / the rank of the first match.",
        "ndcg": "Normalised discounted cumulative gain of the whole ranking.",
        "preference_accuracy": "Share of pairs whose preferred answer is the likelier one.",
        "reward_accuracy": "Share of pairs whose preferred answer has the higher reward.",
        "reward_margin": "Mean lead in reward of the preferred answer.",
        "reward": "Mean reward that the grader gave.",
    },
)
