"""Text generation that goes on from a fine-tuned model: replay, an anchor, noise."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from app.domain.job_spec import AdapterRef, Anchor, JobSpec, Replay
from app.storage.local import LocalStorage
from tests.training.conftest import (
    SHORT_CHATS,
    Attempt,
    RunAttempt,
    dataset_of,
    job_spec,
    put_records,
    random_sequences,
)
from worker.training.batches import RecordBatch
from worker.training.earlier import remember, with_replayed
from worker.trunk.batch import SequenceRows, pack
from worker.trunk.trunk import Trunk

NEW = [
    {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]}
    for answer in ("Η θάλασσα είναι ήρεμη.", "Сегодня идёт снег.", "Wir müssen früh aufstehen.")
]


@pytest.fixture
def first(run_attempt: RunAttempt, storage: LocalStorage) -> JobSpec:
    spec = job_spec(
        put_records(storage, "first", SHORT_CHATS),
        job_id="first",
        num_epochs=20,
        batch_size=5,
        learning_rate=0.02,
    )
    prefix = run_attempt(spec).last["prefix"]
    return replace(spec, start_from=AdapterRef("ft:first", f"{prefix}/adapter"))


def second(run_attempt: RunAttempt, storage: LocalStorage, first: JobSpec, **more: Any) -> Attempt:
    """Learn other languages after `first`."""
    new = put_records(storage, "new", NEW)
    spec = job_spec(new, new, job_id=f"second-{len(list(storage.list('jobs')))}")
    chosen = replace(first.hyperparameters, **more)
    return run_attempt(replace(spec, start_from=first.start_from, hyperparameters=chosen))


def test_less_is_forgotten_with_replay_and_with_an_anchor(
    run_attempt: RunAttempt, storage: LocalStorage, first: JobSpec
) -> None:
    measured = Replay(first.training_file, 0.0)
    forgotten = partial(second, run_attempt, storage, first)

    def loss_of(attempt: Attempt) -> dict[str, float]:
        found: dict[str, float] = attempt.last["report"]["forgetting"]["metrics"]["loss"]
        return found

    without = loss_of(forgotten(replay=measured))
    replayed = loss_of(forgotten(replay=Replay(first.training_file, 0.5)))
    anchored = loss_of(forgotten(replay=measured, anchor=Anchor("l2", 1.0)))

    assert without["base"] == pytest.approx(replayed["base"])
    assert without["difference"] > 0
    assert replayed["difference"] < without["difference"]
    assert anchored["difference"] < without["difference"]


def test_noise_changes_what_is_learnt_and_repeats_itself(
    run_attempt: RunAttempt, storage: LocalStorage
) -> None:
    spec = job_spec(put_records(storage, "train", SHORT_CHATS))
    noisy = replace(spec, hyperparameters=replace(spec.hyperparameters, neftune_noise_alpha=5.0))

    losses = [
        [one["train_loss"] for one in run_attempt(chosen, lease=lease).of_type("step")]
        for lease, chosen in enumerate((spec, noisy, noisy), start=1)
    ]

    assert losses[0] != losses[1]
    assert losses[1] == losses[2]


def test_noise_is_bounded_by_each_segments_length_and_on_its_own_rows(tiny_trunk: Trunk) -> None:
    long, short, other = random_sequences(40, 10, 5)
    batch = pack([SequenceRows(long, "a"), SequenceRows(short, "a"), SequenceRows(other, "b")])
    plain = tiny_trunk.model.get_input_embeddings()(batch.input_ids)
    tiny_trunk.add_noise("a", 8.0, torch.Generator().manual_seed(1))
    try:
        change = (tiny_trunk.disturbed_embeddings(batch) - plain).abs()
    finally:
        tiny_trunk.detach("a")

    width = plain.shape[1]
    for segment in batch.segments[:2]:
        bound = 8.0 / ((segment.end - segment.start) * width) ** 0.5
        largest = change[segment.start : segment.end].max().item()
        assert 0.9 * bound < largest <= bound * 1.0001
    assert change[batch.segments[2].start :].max().item() == 0


def test_replayed_records_stand_behind_the_new_ones() -> None:
    new = dataset_of(*[([1, 2, 3], [0, 1, 1])] * 4)
    before = dataset_of(*[([9, 8, 7, index], [0, 0, 1, 1]) for index in range(10, 20)])

    earlier = remember(before, 4, 0.5, seed=1)
    joined = with_replayed(new, earlier)

    assert len(earlier.replayed) == 4
    assert len(earlier.judged) == 2
    assert not set(earlier.replayed) & set(earlier.judged)
    assert joined.num_records == 8
    (batch,) = RecordBatch(joined, [3, 4], token_budget=100)
    assert batch.sequences == ([1, 2, 3], [9, 8, 7, 10 + earlier.replayed[0]])
    assert batch.label_rows.tolist() == [0, 1, 4, 5]
    assert joined.lines[4] == -(earlier.replayed[0] + 1)
