"""From conversations to tokens: the one place where training and inference render a prompt.

The base model's own chat template decides the text. Training finds what the assistant says by
rendering the conversation prefix by prefix, so it works with any template that only appends.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from transformers import PreTrainedTokenizerBase

from app.domain.datasets import ChatRecord, CompletionRecord, as_template_messages
from worker.trunk.conversation import Conversation, Messages, Tools


@dataclass(frozen=True, slots=True)
class EncodedRecord:
    """One record as tokens.

    Attributes:
        input_ids: prompt and answer.
        loss_weights: 1 for a token that is learnt, else 0; as many as there are tokens.
        truncated: the record was longer than allowed and was cut at the end.
        score: 1 for what is to be learnt; a method that learns from answers which are not wanted
            gives those 0.
    """

    input_ids: list[int]
    loss_weights: list[int]
    truncated: bool
    score: float = 1.0

    @property
    def trainable_tokens(self) -> int:
        """Tokens that carry loss; the first never does, since nothing comes before it."""
        return sum(self.loss_weights[1:])


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    tools: Tools,
    chat_template: str | None = None,
) -> list[int]:
    """Return the tokens after which the assistant's next answer begins.

    They equal, token for token, what training put before that answer.

    Args:
        messages: plain messages, without absent fields.
        chat_template: takes the place of the tokenizer's own.

    Raises:
        InvalidInput: the template does not accept the messages, or would ignore part of them.
    """
    conversation = Conversation.of(tokenizer, messages, tools, chat_template)
    text = conversation.render(len(messages), prompt=True)
    cuts = [
        len(before)
        for index in conversation.assistant_turns()
        if (before := conversation.find_prefix(index, text)) is not None
    ]
    return [token_id for token_id, _, _ in _tokens(tokenizer, text, cuts)]


def encode_completion_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Return the tokens of a plain prompt, without a chat template."""
    return _opening(tokenizer) + [token_id for token_id, _, _ in _tokens(tokenizer, prompt, [])]


def encode_record(
    tokenizer: PreTrainedTokenizerBase,
    record: ChatRecord | CompletionRecord,
    max_length_tokens: int,
) -> EncodedRecord:
    """Return a record's tokens, and which of them are learnt.

    Of a chat, those of the assistant's messages up to and including the token that ends the turn,
    except messages of weight 0. Of a completion, all of it and the end-of-text token.

    Raises:
        InvalidInput: the template does not accept the record, or does not show what the
            assistant says in it.
    """
    if isinstance(record, CompletionRecord):
        token_ids, weights = _encode_completion(tokenizer, record)
    else:
        token_ids, weights = _encode_chat(tokenizer, record)
    return EncodedRecord(
        input_ids=token_ids[:max_length_tokens],
        loss_weights=weights[:max_length_tokens],
        truncated=len(token_ids) > max_length_tokens,
    )


def encode_text(
    tokenizer: PreTrainedTokenizerBase, text: str, max_length_tokens: int
) -> list[EncodedRecord]:
    """Return a raw text in pieces of at most the maximal length, every token of them learnt.

    The first piece begins as the tokenizer begins a text, the last one ends with its end-of-text
    token.
    """
    token_ids = encode_completion_prompt(tokenizer, text)
    if isinstance(tokenizer.eos_token_id, int):
        token_ids.append(tokenizer.eos_token_id)
    pieces = [
        token_ids[start : start + max_length_tokens]
        for start in range(0, len(token_ids), max_length_tokens)
    ]
    # A piece of one token predicts nothing.
    return [EncodedRecord(piece, [1] * len(piece), False) for piece in pieces if len(piece) > 1]


def _encode_completion(
    tokenizer: PreTrainedTokenizerBase, record: CompletionRecord
) -> tuple[list[int], list[int]]:
    opening = _opening(tokenizer)
    boundary = len(record.prompt)
    tokens = _tokens(tokenizer, record.prompt + record.completion, [boundary])
    token_ids = opening + [token_id for token_id, _, _ in tokens]
    weights = [0] * len(opening) + [int(start >= boundary) for _, start, _ in tokens]
    eos_token_id = tokenizer.eos_token_id
    if isinstance(eos_token_id, int):
        return [*token_ids, eos_token_id], [*weights, 1]
    return token_ids, weights


def _encode_chat(
    tokenizer: PreTrainedTokenizerBase, record: ChatRecord
) -> tuple[list[int], list[int]]:
    conversation = Conversation.of(tokenizer, as_template_messages(record), record.tools, None)
    text = conversation.render(len(record.messages), prompt=False)
    turns = conversation.assistant_turns()
    spans = [conversation.find_span(index, text) for index in turns]
    if None in spans:
        text, spans = conversation.marked_spans(len(turns))
    learnt = [
        span
        for index, span in zip(turns, spans, strict=True)
        if span is not None and record.messages[index].weight != 0
    ]
    tokens = _tokens(tokenizer, text, [span[0] for span in spans if span is not None])
    weights = [0] * len(tokens)
    for first, last in learnt:
        position = bisect_left(tokens, first, key=lambda token: token[1])
        while position < len(tokens) and tokens[position][2] <= last:
            weights[position] = 1
            position += 1
    return [token_id for token_id, _, _ in tokens], weights


def _opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return what the tokenizer puts before plain text: often a begin-of-text token."""
    token_ids = list(tokenizer("").input_ids)
    return [token_id for token_id in token_ids if token_id != tokenizer.eos_token_id]


def _tokens(
    tokenizer: PreTrainedTokenizerBase, text: str, cuts: Sequence[int]
) -> list[tuple[int, int, int]]:
    """Return (token id, first character, end) of each token, none of which spans a cut.

    A text without such tokens is encoded whole, as any other program would. Only a cut inside a
    token makes it two texts: the model writes its answer from the cut on, so an answer that
    starts with a line break must not melt into the line break of the header before it.
    """
    encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    inner = {cut for cut in cuts for start, end in encoding.offsets if start < cut < end}
    if not inner:
        return [(i, *span) for i, span in zip(encoding.ids, encoding.offsets, strict=True)]
    tokens: list[tuple[int, int, int]] = []
    bounds = [0, *sorted(inner), len(text)]
    for first, last in pairwise(bounds):
        piece = tokenizer.backend_tokenizer.encode(text[first:last], add_special_tokens=False)
        for token_id, (start, end) in zip(piece.ids, piece.offsets, strict=True):
            tokens.append((token_id, first + start, first + end))
    return tokens
