"""What a task learnt before, so that it is replayed, held on to and asked for again."""

import random
from dataclasses import dataclass, replace
from pathlib import Path

from worker.tasks import Example
from worker.training.batches import derived_seed
from worker.training.examples import EncodedExamples

MAX_JUDGED = 200


@dataclass(frozen=True, slots=True)
class Memory:
    """Earlier data of a run that goes on from a fine-tuned model.

    Attributes:
        start: directory of the adapter that the run starts from.
        replayed: mixed into training.
        judged: asked for before and after; never replayed.
    """

    start: Path
    replayed: tuple[Example, ...]
    judged: tuple[Example, ...]


def remember(
    earlier: EncodedExamples, start: Path, num_new: int, share: float, seed: int
) -> Memory:
    """Divide earlier data into what is replayed and what is only asked for.

    Args:
        num_new: examples that are new in this run.
        share: of the examples of a pass that are to be earlier ones, as far as there are enough.
    """
    lines = list(dict.fromkeys(example.line for example in earlier.examples))
    random.Random(derived_seed(seed, "memory")).shuffle(lines)
    kept = set(lines[: min(MAX_JUDGED, max(1, len(lines) // 5))])
    judged = tuple(example for example in earlier.examples if example.line in kept)
    rest = [example for example in earlier.examples if example.line not in kept]
    wanted = round(num_new * share / (1.0 - share))
    random.Random(derived_seed(seed, "replay")).shuffle(rest)
    # A line of another file: who looks a worst row up must not look here.
    replayed = tuple(replace(example, line=-example.line) for example in rest[:wanted])
    return Memory(start, replayed, judged)
