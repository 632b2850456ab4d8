"""Grammars that an answer has to follow, by llguidance: which tokens may come next.

A grammar decides at each step what is possible, and the model what is said: tokens that cannot
go on are taken out before temperature and nucleus. The token that ends an answer is possible only
where the answer is complete. A text that can go on in one way alone is split into tokens as the
tokenizer itself would split it, as the model has read it in training.
"""

import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from app.domain.errors import InvalidInput
from worker.generation.vocabulary import Vocabulary

MAX_GRAMMAR_CHARACTERS = 256 * 1024
_CACHED_GRAMMARS = 64

# Between the parts of a JSON text: as `json.dumps` writes, with an indent or without one, and
# compact. Endless white space, which JSON allows, is what small models are lost in.
_WHITE_SPACE = r"\n?[ \t]{0,16}"


def json_schema_grammar(schema: Mapping[str, Any], *, is_lenient: bool = False) -> str:
    """Return the grammar of the JSON texts that a schema describes; see `with_white_space`."""
    told = with_white_space(schema, is_lenient=is_lenient)
    return json.dumps({"grammars": [{"json_schema": told}]})


def lark_grammar(rules: str) -> str:
    """Return a grammar of rules in llguidance's variant of Lark."""
    return json.dumps({"grammars": [{"lark_grammar": rules}]})


def with_white_space(schema: Mapping[str, Any], *, is_lenient: bool = False) -> dict[str, Any]:
    """Return a schema that says how its texts may be spaced.

    Args:
        is_lenient: leave out what of the schema cannot be enforced, instead of refusing it.
    """
    options = {"whitespace_pattern": _WHITE_SPACE, "lenient": is_lenient}
    return {**schema, "x-guidance": options}


class GrammarState:
    """Where one sequence is in its grammar. One thread advances it."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def restrict(self, logits: Tensor) -> Tensor:
        """Return `logits`, [vocab], with -inf for every token that cannot come next.

        Raises:
            RuntimeError: the grammar has become too complex to follow.
        """
        # A byte for each token, zero if it cannot come.
        possible = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.int8)
        self._refuse_if_lost()
        impossible = (possible[: logits.numel()] == 0).to(logits.device)
        return logits.masked_fill(impossible, float("-inf"))

    def accept(self, token_id: int) -> None:
        """Go on by a token that was possible. Raises: RuntimeError."""
        self._matcher.consume_token(token_id)
        self._refuse_if_lost()

    def _refuse_if_lost(self) -> None:
        if self._matcher.is_error():
            raise RuntimeError(f"the grammar cannot be followed: {self._matcher.get_error()}")


class Grammar:
    """A compiled grammar, which any number of sequences may follow."""

    def __init__(self, start: LLMatcher) -> None:
        self._start = start

    def follow(self) -> GrammarState:
        """Return the state that a sequence begins in."""
        return GrammarState(self._start.deep_copy())


class GrammarCompiler:
    """Compiles grammars for the tokens of one base model, and keeps the latest. For one thread.

    Args:
        vocab_size: of how many tokens the model gives logits.
    """

    def __init__(self, vocabulary: Vocabulary, vocab_size: int) -> None:
        self._tokenizer_json = vocabulary.tokenizer.backend_tokenizer.to_str()
        self._vocab_size = max(vocab_size, len(vocabulary.tokenizer))
        self._end_token_ids = sorted(vocabulary.end_token_ids)
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[str, Grammar] = OrderedDict()

    def compile(self, definition: str, param: str) -> Grammar:
        """Return a grammar that `json_schema_grammar` or `lark_grammar` wrote.

        Compiling is bounded by llguidance's own limits to some tenths of a second.

        Args:
            param: the field of the request that asks for it.

        Raises:
            InvalidInput: it is too large, not valid, or says what cannot be guaranteed.
        """
        if definition in self._compiled:
            self._compiled.move_to_end(definition)
            return self._compiled[definition]
        if len(definition) > MAX_GRAMMAR_CHARACTERS:
            raise _refusal(f"it is longer than {MAX_GRAMMAR_CHARACTERS:,} characters", param)
        tokenizer = self._for_llguidance(param)
        matcher = LLMatcher(tokenizer, definition, log_level=0)
        if matcher.is_error():
            raise _refusal(matcher.get_error(), param)
        if error := _error_at_the_start(matcher, tokenizer):
            raise _refusal(error, param)
        self._compiled[definition] = Grammar(matcher)
        while len(self._compiled) > _CACHED_GRAMMARS:
            self._compiled.popitem(last=False)
        return self._compiled[definition]

    def _for_llguidance(self, param: str) -> LLTokenizer:
        if self._tokenizer is None:
            if not self._end_token_ids:
                raise _unsupported("no token ends its answers", param)
            try:
                self._tokenizer = LLTokenizer(
                    self._tokenizer_json, n_vocab=self._vocab_size, eos_token=self._end_token_ids
                )
            except ValueError as error:
                raise _unsupported(f"its tokens: {error}"[:200], param) from error
        return self._tokenizer


def _error_at_the_start(matcher: LLMatcher, tokenizer: LLTokenizer) -> str:
    """Return why no answer could begin in a grammar, if none can; some limits show only there.

    The beginning is the text that every answer has, `{` say, and the first choice after it.
    """
    trial = matcher.deep_copy()
    trial.compute_logit_bias()
    trial.try_consume_tokens(tokenizer.tokenize_bytes(trial.compute_ff_bytes()))
    if not trial.is_stopped():
        trial.compute_logit_bias()
    # What the state was in detail comes after the reason.
    return trial.get_error().partition("<state>")[0] if trial.is_error() else ""


def _unsupported(reason: str, param: str) -> InvalidInput:
    return InvalidInput(
        f"'{param}' is not supported by this base model: {reason}",
        param=param,
        code="unsupported_parameter",
    )


def _refusal(reason: str, param: str) -> InvalidInput:
    told = " ".join(reason.split())[:300]
    return InvalidInput(
        f"the schema in '{param}' is not supported: {told}", param=param, code="invalid_schema"
    )
