"""Training methods: one file each, named by dotted path in `app.domain.methods.METHODS`."""

from typing import Protocol

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from app.domain.datasets import Record
from worker.training.losses.cross_entropy import TokenLosses
from worker.trunk.chat import EncodedRecord


class Method(Protocol):
    """What a training method decides: which tokens are learnt, and at which loss.

    Everything else (packing, accumulation, optimizer, checkpoints) is the same for all. A method
    keeps no state: one object may serve several sessions.
    """

    def encode(
        self, tokenizer: PreTrainedTokenizerBase, record: Record, max_length_tokens: int
    ) -> EncodedRecord:
        """Return a record's tokens and which of them carry loss. Raises: InvalidInput."""

    def loss(
        self, hidden: Tensor, head_weight: Tensor, targets: Tensor, weights: Tensor
    ) -> TokenLosses:
        """Return the loss of rows that carry loss.

        Args:
            hidden: [rows, hidden], the trunk's output.
            head_weight: [vocab, hidden].
            targets: [rows] int64, the token to be predicted.
            weights: [rows] float32; over all micro-batches of a step they sum to 1.
        """
