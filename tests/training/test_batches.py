"""Which records a step takes and how they are packed."""

from tests.training.conftest import dataset_of
from worker.training.batches import RecordBatch, epoch_order


def test_order_is_a_permutation_that_depends_on_seed_and_epoch_alone() -> None:
    order = epoch_order(50, seed=1, epoch=0)

    assert sorted(order) == list(range(50))
    assert order == epoch_order(50, seed=1, epoch=0)
    assert order != epoch_order(50, seed=1, epoch=1)
    assert order != epoch_order(50, seed=2, epoch=0)


def test_rows_predict_the_next_token_within_their_record() -> None:
    dataset = dataset_of(([10, 11, 12], [0, 0, 1]), ([20, 21, 22, 23], [1, 1, 0, 1]))

    (batch,) = RecordBatch(dataset, [0, 1], token_budget=100)

    assert batch.sequences == ([10, 11, 12], [20, 21, 22, 23])
    # The weight of token 20 is lost: nothing comes before it in its own record.
    assert batch.label_rows.tolist() == [1, 3, 5]
    assert batch.targets.tolist() == [12, 21, 23]
    assert batch.weights.tolist() == [1.0, 1.0, 1.0]
    assert batch.num_tokens == 7


def test_packs_up_to_the_budget_in_order() -> None:
    dataset = dataset_of(*[([1] * n, [1] * n) for n in (4, 4, 3, 9, 2)])

    packed = [
        [len(sequence) for sequence in batch.sequences]
        for batch in RecordBatch(dataset, [0, 1, 2, 3, 4], token_budget=8)
    ]

    # A record longer than the budget goes alone.
    assert packed == [[4, 4], [3], [9], [2]]
