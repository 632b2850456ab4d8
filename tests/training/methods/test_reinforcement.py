"""Learning from rewards: steps and whole runs on a tiny model."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from app.domain.errors import InvalidInput, TrainingFailed
from app.domain.graders import Completion, ModelPrompt, parse_grader
from app.domain.job_spec import AdapterRef, EvaluationSpec, JobSpec, LoraSpec
from app.domain.methods.reinforcement import PolicyLossType, RewardScale
from app.storage.local import LocalStorage
from tests.training.conftest import (
    Fields,
    RunAttempt,
    job_spec,
    put_records,
    random_adapter,
)
from tests.training.losses.test_policy import grpo_trainer
from tests.training.methods.conftest import assert_same_gradients, gradients, on_trunk
from tests.training.methods.test_dpo_against_trl import peft_gradients, peft_model
from tests.training.test_checkpoints import files_below
from worker.training.bases import WarmBases
from worker.training.batches import MicroBatch
from worker.training.commands import Train
from worker.training.losses.log_probabilities import token_log_probabilities
from worker.training.losses.policy import POLICY_LOSS_TYPES, REWARD_SCALES, PolicyOptions
from worker.training.manifest import BaseModelRef
from worker.training.reinforcement.grading import grade_all
from worker.training.reinforcement.prepare import make_reinforcement_learner
from worker.training.reinforcement.session import ReinforcementSession
from worker.training.step import observe, trunk_step
from worker.trunk.trunk import Trunk

# TRL asks transformers for a property whose name is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

IMPLEMENTATION = "worker.training.methods.reinforcement:Reinforcement"
SHAPE = LoraSpec(r=4, alpha=8)
RECORDS: list[Fields] = [
    {"messages": [{"role": "user", "content": ask}], "word": word}
    for ask, word in [
        ("Say yes.", "yes"),
        ("Which bike?", "red"),
        ("Does it squeal?", "a lot"),
        ("When?", "now"),
    ]
]
SIMILARITY: Fields = {
    "type": "text_similarity",
    "name": "word",
    "input": "{{sample.output_text}}",
    "reference": "{{item.word}}",
    "evaluation_metric": "fuzzy_match",
}
OPTIONS: Fields = {
    "grader": SIMILARITY,
    "group_size": 4,
    "compute_multiplier": 1.0,
    "eval_interval": 2,
    "eval_samples": 1,
    "max_completion_tokens": 5,
    "temperature": 0.8,
    "beta": 0.1,
    "loss_type": "dapo",
    "scale_rewards": "group",
}


def spec_of(storage: LocalStorage, records: list[Fields] = RECORDS, **options: Any) -> JobSpec:
    """Return a run of four steps over prompts that are judged on, too."""
    file = put_records(storage, "train", records)
    spec = job_spec(file, file, adapter=SHAPE, num_epochs=2, learning_rate=0.01)
    return replace(spec, method="reinforcement", method_options=OPTIONS | options)


@pytest.fixture
def run(run_attempt: RunAttempt) -> Callable[..., Any]:
    return lambda spec, **more: run_attempt(spec, implementation=IMPLEMENTATION, **more)


@pytest.fixture
def make_session(
    bases: WarmBases, tiny_base: BaseModelRef, storage: LocalStorage, tmp_path: Path
) -> Callable[[JobSpec], ReinforcementSession]:
    """Return a session whose adapter is on the trunk until the test ends."""

    def make(spec: JobSpec) -> ReinforcementSession:
        command = Train(
            epoch=1,
            spec=spec,
            implementation=IMPLEMENTATION,
            base=tiny_base,
            storage_url=f"file://{tmp_path}/storage",
            checkpoint_prefix="jobs/x",
            resume_from=None,
            deadline_file=None,
            checkpoint_interval_seconds=300.0,
        )
        learner: Any
        learner, _ = make_reinforcement_learner(command, bases, storage, 1024, None)
        learner.close()
        session: ReinforcementSession = learner._session
        return session

    return make


def test_both_sides_know_the_same_names() -> None:
    assert set(get_args(PolicyLossType)) == set(POLICY_LOSS_TYPES)
    assert set(get_args(RewardScale)) == set(REWARD_SCALES)


@pytest.mark.parametrize("loss_type", ["dapo", "dr_grpo"])
def test_a_step_of_the_grpo_trainer(
    tiny_trunk: Trunk,
    tiny_base: BaseModelRef,
    storage: LocalStorage,
    make_session: Callable[[JobSpec], ReinforcementSession],
    tmp_path: Path,
    loss_type: str,
) -> None:
    spec = spec_of(storage, RECORDS[:1], loss_type=loss_type)
    alone = replace(spec.hyperparameters, batch_size=1)
    session = make_session(replace(spec, hyperparameters=alone))
    assert session.adapter is not None
    other = random_adapter(tiny_trunk, SHAPE, 3)
    with torch.no_grad():
        for path, pair in session.adapter.weights.items():
            pair.b.copy_(other.weights[path].b)
    model = peft_model(tiny_base, session.adapter, tmp_path / "policy", temperature=0.8)
    with on_trunk(tiny_trunk, session):
        (part,) = session.next_batch(1024)
        (found,) = trunk_step(tiny_trunk, [session], 40)

    sequences = part.encoded()
    start = sequences[0].loss_weights.index(1)
    longest = max(len(one.input_ids) for one in sequences)
    rest = [longest - len(one.input_ids) for one in sequences]
    ids = torch.tensor([one.input_ids + [0] * n for one, n in zip(sequences, rest, strict=True)])
    mask = torch.tensor([[1] * (longest - n) + [0] * n for n in rest])
    inputs = {
        "prompt_ids": ids[:, :start],
        "prompt_mask": mask[:, :start],
        "completion_ids": ids[:, start:],
        "completion_mask": mask[:, start:],
        "advantages": part.scores,
        "num_items_in_batch": mask[:, start:].sum(),
    }
    base = peft_model(tiny_base, None, tmp_path / "none", temperature=0.8)
    options = PolicyOptions(loss_type=loss_type, beta=0.1, max_completion_tokens=5)
    theirs = grpo_trainer(model, options)
    with torch.no_grad():
        inputs["ref_per_token_logps"], *_ = theirs._get_per_token_logps_and_entropies(
            base, ids, mask, ids.shape[1] - start
        )
    expected = theirs._compute_loss(model, inputs)
    expected.backward()

    assert part.scores.abs().max() > 0.5
    assert found.loss == pytest.approx(expected.item(), rel=1e-5, abs=1e-7)
    assert found.metrics["kl"] == pytest.approx(theirs._metrics["eval"]["kl"][0], rel=1e-4)
    assert_same_gradients(gradients(session.adapter), peft_gradients(model), 1e-4)


def test_a_run_tells_of_rewards(run: Callable[..., Any], storage: LocalStorage) -> None:
    attempt = run(spec_of(storage))

    for step in attempt.of_type("step"):
        assert 0 <= step["train_reward_mean"] <= 1
        assert step["train_reward_std"] >= 0
        assert step["train_kl"] >= 0
        assert 1 <= step["train_completion_length"] <= 5
        assert step["train_grader_failures"] == 0
    # An epoch of two steps; its end always has a validation.
    validations = attempt.of_type("validation")
    assert [one["step"] for one in validations] == [0, 2, 4]
    assert all(one["valid_loss"] == -one["valid_reward"] for one in validations)
    report = attempt.last["report"]
    assert set(report["metrics"]) == {"reward"}
    assert report["metrics"]["reward"]["base"] == pytest.approx(validations[0]["valid_reward"])
    assert report["metrics"]["reward"]["tuned"] == pytest.approx(validations[-1]["valid_reward"])
    every_step = run(replace(spec_of(storage, eval_interval=1), job_id="other"))
    assert [one["step"] for one in every_step.of_type("validation")] == [0, 1, 2, 3, 4]


def test_answers_of_higher_reward_become_likelier(
    tiny_trunk: Trunk,
    storage: LocalStorage,
    make_session: Callable[[JobSpec], ReinforcementSession],
) -> None:
    session = make_session(spec_of(storage, beta=0.0, group_size=8))

    def advantage_of_likelier(answers: list[MicroBatch]) -> float:
        total = 0.0
        for part in answers:
            rows = observe(tiny_trunk, session, part)
            found = token_log_probabilities(rows.hidden, rows.head_weight, rows.targets)
            total += float(found.values @ rows.scores[rows.owners])
        return total

    with on_trunk(tiny_trunk, session):
        answers = session.next_batch(1024)
        before = advantage_of_likelier(answers)
        (found,) = trunk_step(tiny_trunk, [session], 1024)
        session.update(found)
        assert advantage_of_likelier(answers) > before + 1e-3


@pytest.mark.parametrize("stop_at", [1, 3])
def test_a_resumed_run_equals_an_uninterrupted_one(
    run: Callable[..., Any], storage: LocalStorage, stop_at: int
) -> None:
    adapter = replace(SHAPE, dropout=0.1)
    spec = spec_of(storage, eval_samples=2)
    spec = replace(spec, adapter=type(spec.adapter).of_lora(adapter))
    whole = run(spec)
    first = run(spec, lease=2, answers={("step", stop_at): "stop"})

    second = run(spec, lease=3, resume_from=first.last["prefix"])

    assert second.of_type("prepared")[0]["start_step"] == stop_at
    assert files_below(storage.directory(second.last["prefix"])) == files_below(
        storage.directory(whole.last["prefix"])
    )
    assert second.last["metrics_csv"] == whole.last["metrics_csv"]


def test_every_answer_is_drawn_for_itself(
    tiny_trunk: Trunk,
    storage: LocalStorage,
    make_session: Callable[[JobSpec], ReinforcementSession],
) -> None:
    session = make_session(spec_of(storage))
    with on_trunk(tiny_trunk, session):
        first = [one for part in session.next_batch(1024) for one in part.sequences]
        again = [one for part in session.next_batch(60) for one in part.sequences]
        session.step += 2
        later = [one for part in session.next_batch(1024) for one in part.sequences]

    assert again == first
    assert len({tuple(one) for one in first}) == 8
    # The same prompts come in another epoch, and are answered anew.
    assert not {tuple(one) for one in first} & {tuple(one) for one in later}


def test_the_divergence_is_from_what_the_run_starts_from(
    run: Callable[..., Any], storage: LocalStorage
) -> None:
    spec = spec_of(storage)
    first = run(replace(spec, job_id="first"))
    assert first.of_type("step")[-1]["train_kl"] > 1e-6

    start = AdapterRef("ft:first", f"{first.last['prefix']}/adapter")
    second = run(replace(spec, start_from=start))

    assert second.of_type("step")[0]["train_kl"] == pytest.approx(0, abs=1e-9)


def test_a_failure_of_the_grader_is_no_reward_and_is_counted(
    run: Callable[..., Any], storage: LocalStorage
) -> None:
    records = [*RECORDS[:3], {**RECORDS[3], "word": {"of": "another kind"}}]
    grader = {**SIMILARITY, "reference": "{{item.word[0]}}"}
    records[0] = {**RECORDS[0], "word": ["yes"]}
    spec = spec_of(storage, records, grader=grader)
    spec = replace(spec, hyperparameters=replace(spec.hyperparameters, batch_size=4))

    attempt = run(spec)

    assert {one["train_grader_failures"] for one in attempt.of_type("step")} == {12.0}
    assert {one["valid_grader_failures"] for one in attempt.of_type("validation")} == {3.0}


def test_a_grader_that_fails_on_all_ends_the_job_with_its_reason(
    run: Callable[..., Any], storage: LocalStorage
) -> None:
    spec = spec_of(storage, grader={**SIMILARITY, "reference": "{{item.answer}}"})

    with pytest.raises(TrainingFailed, match=r"'word' failed .* no value for .*answer") as ended:
        run(replace(spec, validation_file=None))

    assert (ended.value.code, ended.value.param) == ("grader_failed", "method.reinforcement.grader")


def test_a_prompt_must_leave_room_for_an_answer(
    run: Callable[..., Any], storage: LocalStorage
) -> None:
    long = {"messages": [{"role": "user", "content": "word " * 300}], "word": "no"}
    attempt = run(spec_of(storage, [*RECORDS, long]))

    prepared = attempt.of_type("prepared")[0]
    assert (prepared["records"], prepared["untrainable_lines"]) == (4, (5,))
    with pytest.raises(
        TrainingFailed, match=r"no prompt leaves room for an answer \(lines 1\)"
    ) as ended:
        run(spec_of(storage, [long]))
    assert str(ended.value.param).endswith("max_completion_tokens")


def test_the_best_checkpoint_is_that_of_the_best_reward(
    run: Callable[..., Any], storage: LocalStorage
) -> None:
    spec = replace(spec_of(storage), evaluation=EvaluationSpec(best_metric="reward"))
    attempt = run(spec)

    rewards = {one["step"]: one["valid_reward"] for one in attempt.of_type("validation")}
    assert rewards[attempt.last["step"]] == max(rewards[2], rewards[4])


SCORE_MODEL: Fields = {
    "type": "score_model",
    "name": "judge",
    "model": "test",
    "input": [{"role": "user", "content": "Is it {{item.word}}? {{sample.output_text}}"}],
}


def test_what_a_grading_model_is_asked_goes_together() -> None:
    asked: list[int] = []

    def ask_all(prompts: Any) -> list[Any]:
        asked.append(len(prompts))
        return [_verdict(prompt) for prompt in prompts]

    both = {
        "type": "multi",
        "name": "both",
        "graders": {"judge": SCORE_MODEL, "again": SCORE_MODEL},
        "calculate_output": "judge + again",
    }
    answers = [("yes", {"word": "yes"}), ("no", {"word": "yes"}), ("long", {"word": "yes"})]

    results = grade_all(parse_grader(both), answers, ask_all)

    assert [result.reward for result in results] == [2.0, 0.0, 0.0]
    assert asked == [3, 3]
    assert [error.message for error in results[2].errors] == ["too long", "too long"]


def _verdict(prompt: ModelPrompt) -> Completion | InvalidInput:
    text = prompt.messages[0]["content"]
    if "long" in text:
        return InvalidInput("too long")
    return Completion("1" if text.startswith("Is it yes? yes") else "0")


def test_the_base_model_grades_with_the_adapter_off(
    run: Callable[..., Any], storage: LocalStorage
) -> None:
    # A random model gives no number: what it was asked, and that it answered, is in the reason.
    with pytest.raises(TrainingFailed, match=r"'judge' failed on every one .* no JSON object"):
        run(spec_of(storage, grader=SCORE_MODEL))
