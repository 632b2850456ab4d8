"""Records of preference and of feedback as tokens: in both, only the answers carry loss.

A sequence's `score` says what is thought of its answer: 1 for a wanted one, 0 for an unwanted one.
"""

from collections.abc import Sequence
from dataclasses import replace

import msgspec
from transformers import PreTrainedTokenizerBase

from app.domain.datasets import (
    ChatRecord,
    CompletionRecord,
    FeedbackRecord,
    Message,
    PreferenceRecord,
)
from worker.trunk.chat import EncodedRecord, encode_record


def encode_preference(
    tokenizer: PreTrainedTokenizerBase, record: PreferenceRecord, max_length_tokens: int
) -> tuple[EncodedRecord, EncodedRecord]:
    """Return the prompt with the preferred answer, and with the other one.

    Both start with the tokens that serving makes of the prompt. What the assistant says in the
    prompt carries no loss; in an answer of several messages all that it says does.

    Raises:
        InvalidInput: the template does not accept the record, or does not show what the
            assistant says in it.
    """
    prompt = [_unlearnt(message) for message in record.input.messages]

    def encode(answer: Sequence[Message], score: float) -> EncodedRecord:
        chat = ChatRecord([*prompt, *answer], record.input.tools, record.input.parallel_tool_calls)
        return replace(encode_record(tokenizer, chat, max_length_tokens), score=score)

    return encode(record.preferred_output, 1.0), encode(record.non_preferred_output, 0.0)


def encode_feedback(
    tokenizer: PreTrainedTokenizerBase, record: FeedbackRecord, max_length_tokens: int
) -> EncodedRecord:
    """Return a prompt and its completion, as a completion record has them."""
    completion = CompletionRecord(record.prompt, record.completion)
    encoded = encode_record(tokenizer, completion, max_length_tokens)
    return replace(encoded, score=float(record.label))


def mismatched(records: Sequence[EncodedRecord], max_length_tokens: int) -> list[EncodedRecord]:
    """Return each prompt with the answer of the record before it, the first with the last one's.

    KTO estimates its KL from these: answers that are as likely as any, but not to this prompt
    (Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306). Of one record it makes
    that record.

    Args:
        records: those of a batch; each has a token that carries loss.
        max_length_tokens: where the new sequences are cut.
    """
    starts = [record.loss_weights.index(1) for record in records]
    found: list[EncodedRecord] = []
    for place, (record, start) in enumerate(zip(records, starts, strict=True)):
        other, first = records[place - 1], starts[place - 1]
        input_ids = record.input_ids[:start] + other.input_ids[first:]
        weights = record.loss_weights[:start] + other.loss_weights[first:]
        found.append(
            EncodedRecord(
                input_ids=input_ids[:max_length_tokens],
                loss_weights=weights[:max_length_tokens],
                truncated=len(input_ids) > max_length_tokens,
                score=record.score,
            )
        )
    return found


def _unlearnt(message: Message) -> Message:
    return msgspec.structs.replace(message, weight=0) if message.role == "assistant" else message
