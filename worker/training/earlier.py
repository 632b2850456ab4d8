"""What text generation learnt before, so that it is replayed and asked for again."""

import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from worker.training.batches import derived_seed
from worker.training.memory import MAX_JUDGED
from worker.training.records import EncodedDataset


@dataclass(frozen=True, slots=True)
class Earlier:
    """Earlier data of a run that goes on from a fine-tuned model.

    Attributes:
        replayed: records that are mixed into training.
        judged: records that are asked for before and after, and never replayed.
    """

    dataset: EncodedDataset
    replayed: Sequence[int]
    judged: Sequence[int]


def remember(dataset: EncodedDataset, num_new: int, share: float, seed: int) -> Earlier:
    """Divide earlier data into what is replayed and what is only asked for.

    Args:
        num_new: records that are new in this run.
        share: of the records of a pass that are to be earlier ones, as far as there are enough.
    """
    order = list(range(dataset.num_records))
    random.Random(derived_seed(seed, "memory")).shuffle(order)
    num_judged = min(MAX_JUDGED, max(1, len(order) // 5))
    wanted = round(num_new * share / (1.0 - share))
    rest = order[num_judged:]
    return Earlier(dataset, rest[:wanted], sorted(order[:num_judged]))


def with_replayed(training: EncodedDataset, earlier: Earlier) -> EncodedDataset:
    """Return a dataset of all records of the training file, and behind them those replayed.

    Lines of the latter are negative: they are of another file.
    """
    token_ids, loss_weights = [training.token_ids], [training.loss_weights]
    offsets, starts = array("q", training.offsets), array("q", training.starts)
    scores, lines = array("d", training.scores), array("q", training.lines)
    trainable_tokens = training.trainable_tokens
    for record in earlier.replayed:
        for sequence in earlier.dataset.sequences(record):
            ids, weights = earlier.dataset.tokens(sequence)
            token_ids.append(ids)
            loss_weights.append(weights)
            offsets.append(offsets[-1] + len(ids))
            scores.append(earlier.dataset.scores[sequence])
            trainable_tokens += int(weights[1:].sum())
        starts.append(len(scores))
        lines.append(-earlier.dataset.lines[record])
    return replace(
        training,
        token_ids=torch.cat(token_ids),
        loss_weights=torch.cat(loss_weights),
        offsets=offsets,
        starts=starts,
        scores=scores,
        lines=lines,
        trainable_tokens=trainable_tokens,
    )
