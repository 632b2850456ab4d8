"""Choosing the next token of each sequence from its logits, in float32.

A sequence draws exactly one number from its own generator for each token, so what its seed gives
depends neither on the other sequences of a batch nor on the moment it joined. The logits do
depend on the batch, in their last bits, because matrix kernels add in an order that follows the
batch's shape: a draw that falls within about 1e-6 of the border between two tokens can differ.
"""

import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

# The nucleus almost always fits into this many tokens; finding them takes a tenth of a full sort.
_NUCLEUS_GUESS = 1024


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
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A token and, where they were asked for, its natural log-probability and alternatives.

    Log-probabilities are the model's own: before temperature, penalties, bias and nucleus.
    """

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """The parameters of one sequence, its random generator, and the tokens it has generated."""

    def __init__(self, parameters: SamplingParameters) -> None:
        self.parameters = parameters
        self._generated: Counter[int] = Counter()
        self._generator = torch.Generator()
        seed = secrets.randbits(63) if parameters.seed is None else parameters.seed
        self._generator.manual_seed(seed)

    def sample(self, logits: Tensor) -> SampledToken:
        """Choose the next token from `logits`: [vocab] float32.

        Raises:
            FloatingPointError: the logits are not finite.
        """
        token_id = self._choose(self._adjusted(logits))
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
        probabilities = torch.softmax(scaled, dim=-1)
        draw = float(torch.rand((), generator=self._generator, dtype=torch.float64))
        if self.parameters.top_p >= 1.0:
            return _invert(probabilities, draw)
        values, token_ids = _nucleus(probabilities, self.parameters.top_p)
        return int(token_ids[_invert(values, draw)])


def score(logits: Tensor, token_id: int, alternatives: int) -> SampledToken:
    """Return a token with its log-probability under `logits`: [vocab] float32."""
    logprobs = torch.log_softmax(logits, dim=-1)
    top: tuple[tuple[int, float], ...] = ()
    if alternatives:
        values, ids = logprobs.topk(min(alternatives, logprobs.numel()))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return SampledToken(token_id, float(logprobs[token_id]), top)


def _nucleus(probabilities: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Return the probabilities and ids of the nucleus, likeliest first.

    The set is the smallest whose probabilities reach `top_p`; it holds one token at least.
    Source: Holtzman et al. 2020, section 3.1, https://arxiv.org/abs/1904.09751
    """
    size = probabilities.numel()
    values, ids = probabilities.topk(min(_NUCLEUS_GUESS, size))
    if float(values.sum(dtype=torch.float64)) < top_p:
        values, ids = probabilities.sort(descending=True, stable=True)
    before = values.cumsum(0, dtype=torch.float64) - values
    kept = max(1, int((before < top_p).sum()))
    return values[:kept], ids[:kept]


def _invert(probabilities: Tensor, draw: float) -> int:
    """Return the index at which the cumulative distribution passes `draw`, uniform in [0, 1)."""
    cumulative = probabilities.cumsum(0, dtype=torch.float64)
    target = (cumulative[-1] * draw).reshape(1)
    # `right` skips entries of probability zero: the sum must pass the target, not reach it.
    index = int(torch.searchsorted(cumulative, target, right=True))
    return min(index, cumulative.numel() - 1)
