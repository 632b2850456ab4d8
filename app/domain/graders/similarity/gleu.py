"""GLEU of one sentence, by NLTK (Wu et al. 2016, "Google's neural machine translation system")."""

from nltk.translate.gleu_score import sentence_gleu
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

_tokenize = Tokenizer13a()  # type: ignore[no-untyped-call] # It has no types.


def gleu(text: str, reference: str) -> float:
    """The lesser of precision and recall of all runs of one to four 13a tokens."""
    references = [_tokenize(reference).split()]
    return float(sentence_gleu(references, _tokenize(text).split()))
