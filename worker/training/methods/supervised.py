"""Supervised fine-tuning: maximise the likelihood of the assistant's turns."""

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from app.domain.datasets import Record
from worker.training.losses.cross_entropy import TokenLosses, chunked_cross_entropy
from worker.trunk.chat import EncodedRecord, encode_record


class Supervised:
    """The mean cross-entropy of all learnt tokens in the batch, whatever record they are in."""

    def encode(
        self, tokenizer: PreTrainedTokenizerBase, record: Record, max_length_tokens: int
    ) -> EncodedRecord:
        return encode_record(tokenizer, record, max_length_tokens)

    def loss(
        self, hidden: Tensor, head_weight: Tensor, targets: Tensor, weights: Tensor
    ) -> TokenLosses:
        return chunked_cross_entropy(hidden, head_weight, targets, weights)
