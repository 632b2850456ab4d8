"""Aliases: a name of a project's own, and which of its versions answers a request."""

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from app.domain.errors import InvalidInput

MAX_TARGETS = 16

# Never the name of a fine-tuned model, which begins with `ft:`; ids of the catalogue are refused
# when an alias is made.
NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


@dataclass(frozen=True, slots=True)
class Target:
    """A version that an alias points at, and its share of the requests.

    Attributes:
        weight: 0 or more, of any scale: it counts in proportion to the sum.
    """

    model: str
    weight: float


@dataclass(frozen=True, slots=True)
class Shadow:
    """A version that is asked, too, and whose answers nobody gets.

    Attributes:
        share: of the answered requests, from 0 to 1.
        records_contents: whether prompts and answers are kept beside their scores.
    """

    model: str
    share: float
    records_contents: bool


def check_targets(targets: Sequence[Target], shadow: Shadow | None) -> None:
    """Refuse targets among which nothing can be chosen. Raises: InvalidInput, naming the field."""
    names = [target.model for target in targets]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise InvalidInput(
                f"'targets' names {name!r} twice: give it one weight",
                param=f"targets[{number}].model",
            )
    if not any(target.weight > 0 for target in targets):
        raise InvalidInput("'targets' needs a weight above 0", param="targets")
    if shadow is not None and len(targets) == 1 and shadow.model == names[0]:
        raise InvalidInput(
            f"{shadow.model!r} answers already: a shadow is another version", param="shadow.model"
        )


def choose(targets: Sequence[Target], alias_id: str, user: str | None) -> str:
    """Return the version that answers: for a user always the same, else drawn by weight.

    Weighted rendezvous hashing (Schindelhauer and Schomaker, "Weighted distributed hash tables",
    2005): each version draws from an exponential distribution whose rate is its weight, by a hash
    of the user and its own name, and the smallest draw wins. So each wins in proportion to its
    weight, and when one weight changes, users move to that version or away from it, and no others.
    """
    if user is None:
        weights = [target.weight for target in targets]
        return random.choices(targets, weights)[0].model
    return min(targets, key=lambda target: _draw(target, alias_id, user)).model


def _draw(target: Target, alias_id: str, user: str) -> float:
    if target.weight == 0:
        return math.inf
    parts = "\0".join((alias_id, target.model, user)).encode(errors="surrogatepass")
    number = int.from_bytes(hashlib.sha256(parts).digest()[:8], "big")
    # In the middle of its step, so that it is neither 0 nor 1.
    return -math.log((number + 0.5) / 2**64) / target.weight
