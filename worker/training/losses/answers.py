"""Log-probabilities of whole answers: what losses over preferences are functions of."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Answers:
    """Log-probabilities of answers, each summed over the answer's tokens.

    Attributes:
        policy: [answers] float32, of the model in training; carries the gradient.
        num_tokens: [answers] int64, the tokens in each sum.
        reference: [answers] float32, of the model that training started from; no gradient.
            None where the loss needs none.
    """

    policy: Tensor
    num_tokens: Tensor
    reference: Tensor | None = None

    @property
    def log_ratios(self) -> Tensor:
        """[answers] float32, log of policy over reference."""
        if self.reference is None:
            raise ValueError("this loss compares with a reference, and none was given")
        return self.policy - self.reference

    @property
    def means(self) -> Tensor:
        """[answers] float32, the mean log-probability of an answer's tokens."""
        return self.policy / self.num_tokens.clamp(min=1)


@dataclass(frozen=True, slots=True)
class Preferences:
    """Answers that were preferred, and answers that were not.

    Attributes:
        chosen: the preferred answers.
        rejected: the others. Where a loss needs pairs, the answers of one pair stand at the same
            place; elsewhere either side may have any number of answers, and none.
        chosen_nll: [pairs] float32 with gradient, for `orpo`; see `preference.nll_of_pairs`.
        kl: [] float32, for `kto`; see `preference.estimated_kl`.
    """

    chosen: Answers
    rejected: Answers
    chosen_nll: Tensor | None = None
    kl: Tensor | None = None
