"""Continued pre-training: every token of raw text is predicted from those before it."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from app.domain.datasets import Record, TextRecord
from worker.training.methods.supervised import Supervised
from worker.trunk.chat import EncodedRecord, encode_text


class ContinuedPretraining(Supervised):
    """As supervised fine-tuning, on texts: long ones are cut into pieces, and nothing is lost."""

    def encode(
        self, tokenizer: PreTrainedTokenizerBase, record: Record, max_length_tokens: int
    ) -> Sequence[EncodedRecord]:
        assert isinstance(record, TextRecord)
        return encode_text(tokenizer, record.text, max_length_tokens)
