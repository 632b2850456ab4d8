"""Which engine is asked first: the same one for the same model, unless it has too much to do.

Rendezvous hashing (Thaler and Ravishankar 1998): every engine has a rank for every model, so that
an engine that comes or goes moves only its own models. Bounded loads (Mirrokni, Thorup and
Zadimoghaddam 2016, https://arxiv.org/abs/1608.01350): an engine that has far more than its share
is passed over.
"""

import hashlib
from collections.abc import Mapping, Sequence
from math import ceil

# An engine may have this many times its share of all requests before others are asked.
_LOAD_FACTOR = 1.25
# So few are better off in one batch, beside the adapter that is already there.
_LOAD_FLOOR = 4


def by_preference(engines: Mapping[str, int], base_model: str, adapter: str | None) -> list[str]:
    """Return engines in the order in which they are to be asked.

    Args:
        engines: the names of those that could answer, with how many requests each works on.
        base_model: id of the base model of the request.
        adapter: its name, if one is to answer.
    """
    ranked = sorted(engines, key=lambda name: _rank(name, base_model, adapter), reverse=True)
    bound = _bound(list(engines.values()))
    within = [name for name in ranked if engines[name] < bound]
    beyond = [name for name in ranked if engines[name] >= bound]
    # The rest in the order of its load: who comes here is late in any case.
    return within[:1] + sorted(within[1:] + beyond, key=lambda name: engines[name])


def _bound(loads: Sequence[int]) -> int:
    """Return how many requests an engine has when it takes no more; not all can have as many."""
    share = (sum(loads) + 1) / len(loads) if loads else 0.0
    return max(_LOAD_FLOOR, ceil(_LOAD_FACTOR * share))


def _rank(engine: str, base_model: str, adapter: str | None) -> bytes:
    words = "\n".join((engine, base_model, adapter or ""))
    return hashlib.blake2b(words.encode("utf-8", "surrogatepass"), digest_size=16).digest()
