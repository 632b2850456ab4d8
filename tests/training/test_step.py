"""Several sessions on one trunk: in company, each trains as it does alone."""

import pytest
import torch

from app.domain.errors import TrainingFailed
from app.domain.job_spec import DatasetRef, LoraSpec
from tests.training.conftest import (
    dataset_of,
    job_spec,
    random_adapter,
    random_sequences,
    supervised_session,
)
from worker.training.session import BatchLoss, Session
from worker.training.step import trunk_step
from worker.trunk.lora import LoraAdapter
from worker.trunk.trunk import Trunk

UNUSED = DatasetRef("unused", "unused", "0" * 64, 0)
BUDGET = 50


def new_session(trunk: Trunk, name: str, seed: int, rank: int) -> Session:
    """Return a session with dropout, whose batches fill several passes."""
    spec = LoraSpec(r=rank, alpha=2 * rank, dropout=0.2)
    adapter = random_adapter(trunk, spec, seed)
    sequences = random_sequences(20, 31, 7, 25, 16, seed=seed)
    dataset = dataset_of(*[(ids, [0] * 4 + [1] * (len(ids) - 4)) for ids in sequences])
    return supervised_session(
        job_spec(UNUSED, job_id=name, adapter=spec, batch_size=3, num_epochs=3, learning_rate=0.01),
        adapter,
        dataset,
        trunk,
    )


def train(trunk: Trunk, sessions: list[Session], steps: int) -> list[list[BatchLoss]]:
    for session in sessions:
        trunk.attach(session.name, session.adapter, session.generator)
    history = []
    for _ in range(steps):
        found = trunk_step(trunk, sessions, BUDGET)
        for session, loss in zip(sessions, found, strict=True):
            session.update(loss)
        history.append(found)
    for session in sessions:
        trunk.detach(session.name)
    return history


def assert_equal_weights(left: LoraAdapter, right: LoraAdapter, tolerance: float) -> None:
    for path, pair in left.weights.items():
        other = right.weights[path]
        torch.testing.assert_close(pair.a, other.a, atol=tolerance, rtol=0)
        torch.testing.assert_close(pair.b, other.b, atol=tolerance, rtol=0)


def test_company_changes_nothing(tiny_trunk: Trunk) -> None:
    alone = [new_session(tiny_trunk, "a", 1, 4), new_session(tiny_trunk, "b", 2, 8)]
    losses_alone = [[step[0].loss for step in train(tiny_trunk, [one], 4)] for one in alone]
    together = [new_session(tiny_trunk, "a", 1, 4), new_session(tiny_trunk, "b", 2, 8)]

    history = train(tiny_trunk, together, 4)

    for index, (beside, solo) in enumerate(zip(together, alone, strict=True)):
        # The dropout draws are the same; only sums over more rows differ, in their last bits.
        losses = [step[index].loss for step in history]
        assert losses == pytest.approx(losses_alone[index], rel=1e-5)
        assert_equal_weights(beside.adapter, solo.adapter, 1e-4)
        assert torch.equal(beside.generator.get_state(), solo.generator.get_state())


def test_a_session_that_diverges_harms_itself_alone(tiny_trunk: Trunk) -> None:
    alone = new_session(tiny_trunk, "a", 1, 4)
    train(tiny_trunk, [alone], 1)
    sound, broken = new_session(tiny_trunk, "a", 1, 4), new_session(tiny_trunk, "b", 2, 4)
    with torch.no_grad():
        next(iter(broken.adapter.weights.values())).b.fill_(float("nan"))

    with pytest.raises(TrainingFailed, match="step 1 is not finite"):
        train(tiny_trunk, [sound, broken], 1)
    tiny_trunk.detach("a")
    tiny_trunk.detach("b")

    assert_equal_weights(sound.adapter, alone.adapter, 1e-5)


def test_negative_control_other_dropout_draws_are_noticed(tiny_trunk: Trunk) -> None:
    session, other = new_session(tiny_trunk, "a", 1, 4), new_session(tiny_trunk, "a", 1, 4)
    other.generator.manual_seed(0)

    (first,), (second,) = train(tiny_trunk, [session], 1)[0], train(tiny_trunk, [other], 1)[0]

    assert first.loss != pytest.approx(second.loss, rel=1e-5)


def test_an_epoch_sees_every_record_once(tiny_trunk: Trunk) -> None:
    session = new_session(tiny_trunk, "a", 1, 4)
    train(tiny_trunk, [session], 2)

    assert session.is_epoch_end
    assert session.steps_per_epoch == 2
    assert session.total_steps == 6
    assert session.trained_tokens == 20 + 31 + 7 + 25 + 16


def test_a_gradient_that_overflows_ends_the_session_with_its_weights(tiny_trunk: Trunk) -> None:
    session = new_session(tiny_trunk, "a", 1, 4)
    before = {path: pair.b.detach().clone() for path, pair in session.adapter.weights.items()}
    tiny_trunk.attach("a", session.adapter)
    (found,) = trunk_step(tiny_trunk, [session], BUDGET)
    tiny_trunk.detach("a")
    gradient = next(iter(session.adapter.weights.values())).b.grad
    assert gradient is not None
    gradient.fill_(float("inf"))

    with pytest.raises(TrainingFailed, match="gradient of step 1 is not finite") as error:
        session.update(found)

    assert error.value.code == "non_finite_loss"
    assert all(torch.equal(session.adapter.weights[path].b, b) for path, b in before.items())
