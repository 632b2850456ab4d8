"""Choosing the next token of each sequence from its logits, in float32.

For each token a sequence draws a number for every token of the vocabulary from its own generator,
so what its seed gives depends neither on the other sequences of a batch nor on when it joined. The
logits do depend on the batch, in their last bits, because matrix kernels add in an order that
follows the batch's shape. With a number for every token that decides only where two tokens come
within about 1e-5 of each other, once in tens of thousands of tokens. A single number, looked up in
the cumulative distribution, would meet a border of the many unlikely tokens every few dozen.
"""

import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from worker.generation.grammar import Grammar

# The nucleus almost always fits into this many tokens; finding them takes a tenth of a full sort.
_NUCLEUS_GUESS = 1024
# Uniform numbers are multiples of 2**-24. Zero would rule a token out, even the only one there is.
_SMALLEST_UNIFORM = 2.0**-25


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """How the tokens of one sequence are chosen.

    Attributes:
        temperature: divides the logits; 0 always takes the likeliest token.
        top_p: draw from the smallest set of tokens that holds this probability.
        seed: makes the draws repeatable; None draws differently each time.
        presence_penalty: subtracted once from the logit of each token generated before.
        frequency_penalty: subtracted from it as often as it was generated.
        logit_bias: added to the logits of these token ids.
        top_logprobs: how many alternatives to report beside each token; None reports no
            log-probabilities at all.
        grammar: what the tokens have to follow; None leaves all of them open.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    top_logprobs: int | None = None
    grammar: Grammar | None = None


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A token and, where they were asked for, its natural log-probability and alternatives.

    Log-probabilities are the model's own: before temperature, penalties, bias, grammar and nucleus.
    """

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """The parameters of one sequence, its random generator, and the tokens it has generated.

    What is drawn next depends on this and on the logits alone: a sequence whose cache was dropped
    goes on as if nothing had been, as long as it keeps its sampler.
    """

    def __init__(self, parameters: SamplingParameters) -> None:
        self.parameters = parameters
        self._generated: Counter[int] = Counter()
        self._grammar = parameters.grammar.follow() if parameters.grammar is not None else None
        self._generator = torch.Generator()
        seed = secrets.randbits(63) if parameters.seed is None else parameters.seed
        self._generator.manual_seed(seed)

    def sample(self, logits: Tensor) -> SampledToken:
        """Choose the next token from `logits`: [vocab] float32.

        Raises:
            FloatingPointError: the logits are not finite.
            RuntimeError: the grammar has become too complex to follow.
        """
        adjusted = self._adjusted(logits)
        if self._grammar is None:
            token_id = self._choose(adjusted)
        else:
            token_id = self._choose(self._grammar.restrict(adjusted))
            self._grammar.accept(token_id)
        self._generated[token_id] += 1
        if self.parameters.top_logprobs is None:
            return SampledToken(token_id)
        return score(logits, token_id, self.parameters.top_logprobs)

    def _adjusted(self, logits: Tensor) -> Tensor:
        changes = dict(self.parameters.logit_bias)
        if self.parameters.presence_penalty or self.parameters.frequency_penalty:
            for token_id, count in self._generated.items():
                penalty = self.parameters.presence_penalty
                penalty += self.parameters.frequency_penalty * count
                changes[token_id] = changes.get(token_id, 0.0) - penalty
        if not changes:
            return logits
        index = torch.tensor(list(changes), device=logits.device)
        change = torch.tensor(list(changes.values()), dtype=logits.dtype, device=logits.device)
        return logits.index_add(0, index, change)

    def _choose(self, logits: Tensor) -> int:
        peak, likeliest = logits.max(dim=-1)
        if not torch.isfinite(peak):
            raise FloatingPointError("the model's output is not finite")
        if self.parameters.temperature == 0.0:
            return int(likeliest)
        # Scaled relative to the peak, so that a tiny temperature cannot overflow.
        scaled = (logits - peak) / self.parameters.temperature
        raced = scaled + self._gumbel(scaled.numel()).to(scaled.device)
        if self.parameters.top_p >= 1.0:
            return int(raced.argmax())
        token_ids = _nucleus(torch.softmax(scaled, dim=-1), self.parameters.top_p)
        return int(token_ids[raced[token_ids].argmax()])

    def _gumbel(self, size: int) -> Tensor:
        """Draw numbers with which the largest sum of logit and number is distributed as softmax.

        Source: Gumbel 1954; Maddison et al. 2014, section 2, https://arxiv.org/abs/1411.0030. What
        is less likely than about 2**-24 is not drawn.
        """
        uniform = torch.rand(size, generator=self._generator).clamp_(min=_SMALLEST_UNIFORM)
        return uniform.log_().neg_().log_().neg_()


def score(logits: Tensor, token_id: int, alternatives: int) -> SampledToken:
    """Return a token with its log-probability under `logits`: [vocab] float32."""
    logprobs = torch.log_softmax(logits, dim=-1)
    top: tuple[tuple[int, float], ...] = ()
    if alternatives:
        values, ids = logprobs.topk(min(alternatives, logprobs.numel()))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return SampledToken(token_id, float(logprobs[token_id]), top)


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Return the token ids of the nucleus, likeliest first.

    The set is the smallest whose probabilities reach `top_p`; it holds one token at least.
    Source: Holtzman et al. 2020, section 3.1, https://arxiv.org/abs/1904.09751
    """
    size = probabilities.numel()
    values, ids = probabilities.topk(min(_NUCLEUS_GUESS, size))
    if float(values.sum(dtype=torch.float64)) < top_p:
        values, ids = probabilities.sort(descending=True, stable=True)
    before = values.cumsum(0, dtype=torch.float64) - values
    kept = max(1, int((before < top_p).sum()))
    return ids[:kept]
