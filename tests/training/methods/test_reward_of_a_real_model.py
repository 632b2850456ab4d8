"""SmolLM2 learns a small task that can be verified, from rewards alone: to repeat a word.

Asked to, it writes about the word. The reward is how alike answer and word are, so that shorter
answers that hold the word earn more, and the word alone earns 1.
"""

from dataclasses import replace

import pytest

from app.domain.job_spec import LoraSpec
from app.storage.local import LocalStorage
from tests.training.conftest import Fields, RunAttempt, job_spec, put_records
from worker.training.manifest import BaseModelRef

WORDS = [
    *("apple", "river", "window", "garden", "bottle", "yellow", "planet", "mirror"),
    *("candle", "button", "pocket", "summer", "bridge", "hammer", "carpet", "dragon"),
]
OTHER_WORDS = ["silver", "orange", "market", "ticket", "camera", "winter", "basket", "engine"]


def prompts(words: list[str]) -> list[Fields]:
    return [
        {
            "messages": [
                {"role": "system", "content": "Repeat the word."},
                {"role": "user", "content": word},
            ],
            "word": word,
        }
        for word in words
    ]


@pytest.mark.parametrize(
    "num_words",
    [pytest.param(2, id="one step"), pytest.param(16, id="eight steps", marks=pytest.mark.slow)],
)
def test_the_reward_rises(
    run_attempt: RunAttempt, storage: LocalStorage, base: BaseModelRef, num_words: int
) -> None:
    training_file = put_records(storage, "train", prompts(WORDS[:num_words]))
    heldout = put_records(storage, "heldout", prompts(OTHER_WORDS[: num_words // 2]))
    spec = job_spec(
        training_file,
        heldout,
        adapter=LoraSpec(r=8, alpha=16),
        batch_size=2,
        learning_rate=1e-3,
        scheduler="constant",
    )
    options = {
        "grader": {
            "type": "text_similarity",
            "name": "word",
            "input": "{{sample.output_text}}",
            "reference": "{{item.word}}",
            "evaluation_metric": "fuzzy_match",
        },
        "group_size": 8,
        "compute_multiplier": 1.0,
        "eval_interval": 8,
        "eval_samples": 1,
        "max_completion_tokens": 6,
        "temperature": 0.8,
        "beta": 0.04,
        "loss_type": "dapo",
        "scale_rewards": "group",
    }
    attempt = run_attempt(
        replace(spec, method="reinforcement", method_options=options),
        base=base,
        implementation="worker.training.methods.reinforcement:Reinforcement",
    )

    rewards = [step["train_reward_mean"] for step in attempt.of_type("step")]
    assert len(rewards) == num_words // 2
    if num_words == 2:
        assert 0.1 < rewards[0] < 0.5
        assert attempt.last["report"]["metrics"]["reward"]["tuned"] is not None
        return
    assert sum(rewards[-2:]) / 2 > sum(rewards[:2]) / 2 + 0.3
    judged = attempt.last["report"]["metrics"]["reward"]
    # Words that it has not practised, answered with what is likeliest.
    assert judged["tuned"] > judged["base"] + 0.2
