"""BLEU of one sentence, by sacrebleu (Papineni et al. 2002; Post 2018)."""

from sacrebleu.metrics.bleu import BLEU

# Few sentences have a common run of four words: orders without one do not count, as in sacrebleu's
# own BLEU of a sentence.
_BLEU = BLEU(effective_order=True)


def bleu(text: str, reference: str) -> float:
    """BLEU with 13a tokens and exponential smoothing."""
    return min(1.0, _BLEU.sentence_score(text, [reference]).score / 100)
