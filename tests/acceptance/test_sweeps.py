"""Sweeps on the whole stack, with a real model and real reviews."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from openai import OpenAI

from tests.conftest import INSTALLATIONS
from tests.support.datasets import as_jsonl
from tests.support.faq import faq_categories
from tests.support.jobs import JOB_SECONDS
from tests.support.polling import eventually
from tests.support.service import REPOSITORY, Service

SWEEPS = "/v1/fine_tuning/sweeps"
JOBS = "/v1/fine_tuning/jobs"
MODEL = "all-minilm-l6-v2"
RATE = "method.supervised.hyperparameters.learning_rate_multiplier"
BATCH = "method.supervised.hyperparameters.batch_size"
RANK = "tunesmith.adapter.r"
DECAY = "tunesmith.training.weight_decay"

# What is searched does not depend on the database.
ON_ONE = pytest.mark.parametrize("stack", INSTALLATIONS[:1], indirect=True, scope="session")


@pytest.fixture
def http(stack: Service) -> Iterator[httpx.Client]:
    with stack.http(stack.key) as http:
        yield http


def job_on(
    user: OpenAI, records: list[dict[str, Any]], heldout: int, **hyperparameters: Any
) -> dict[str, Any]:
    """Upload records, the last of them to judge on, and return a job that learns from them."""
    parts = {"training_file": records[:-heldout], "validation_file": records[-heldout:]}
    ids = {
        name: user.files.create(file=("texts.jsonl", as_jsonl(part)), purpose="fine-tune").id
        for name, part in parts.items()
    }
    settings = {"hyperparameters": hyperparameters}
    method = {"type": "supervised", "supervised": settings}
    training = {"max_length_tokens": 64}
    return {
        "model": MODEL,
        **ids,
        "method": method,
        "seed": 7,
        "tunesmith": {"training": training},
    }


def short_texts() -> list[dict[str, Any]]:
    """Return texts whose sentiment is learnt in a second."""
    words = {"positive": ("lovely", "great", "moving"), "negative": ("dull", "awful", "tedious")}
    things = ("film", "play", "book", "song", "meal", "show", "game", "walk", "story", "trip")
    return [
        {"text": f"A {word} {thing}.", "label": label}
        for thing in things
        for adjectives in zip(*words.values(), strict=True)
        for label, word in zip(words, adjectives, strict=True)
    ]


def ended(http: httpx.Client, path: str, seconds: float) -> dict[str, Any]:
    """Wait until a sweep or a job is over."""

    def look() -> dict[str, Any] | None:
        answer = http.get(path)
        assert answer.status_code == 200, answer.text
        seen: dict[str, Any] = answer.json()
        return seen if seen["status"] in ("succeeded", "failed", "cancelled") else None

    found = eventually(look, what=f"{path} is over", within_seconds=seconds)
    assert found is not None
    return found


def swept(http: httpx.Client, body: dict[str, Any], seconds: float) -> dict[str, Any]:
    answer = http.post(SWEEPS, json=body)
    assert answer.status_code == 200, answer.text
    sweep = ended(http, f"{SWEEPS}/{answer.json()['id']}", seconds)
    assert sweep["status"] == "succeeded", sweep["error"]
    return sweep


def trials_of(http: httpx.Client, sweep: dict[str, Any]) -> list[dict[str, Any]]:
    """Return every trial, the first one first."""
    trials = http.get(f"{SWEEPS}/{sweep['id']}/trials", params={"limit": 500}).json()["data"]
    found: list[dict[str, Any]] = trials[::-1]
    return found


@ON_ONE
def test_a_sweep_prunes_a_loser_and_its_winner_can_be_called(
    stack: Service, user: OpenAI, http: httpx.Client
) -> None:
    # The seed puts one that learns before the two that cannot.
    rates = {"type": "categorical", "choices": [1.0, 0.001, 0.002]}
    sweep = swept(
        http,
        {
            "job": job_on(user, short_texts(), heldout=12, n_epochs=10, batch_size=16),
            "parameters": {RATE: rates},
            "algorithm": "grid",
            "pruner": "median",
            "max_trials": 3,
            "seed": 1,
            "suffix": "sweep",
        },
        seconds=JOB_SECONDS,
    )
    trials = trials_of(http, sweep)
    assert trials[0]["parameters"][RATE] == 1.0
    assert [trial["state"] for trial in trials] == ["succeeded", "pruned", "pruned"]
    assert sweep["best_trial"] == trials[0]
    pruned = http.get(f"{JOBS}/{trials[1]['fine_tuning_job_id']}").json()
    assert pruned["status"] == "cancelled"
    assert trials[1]["reason"].startswith("pruned by median: loss 0.")
    best = http.get(f"{JOBS}/{sweep['best_job']}").json()
    assert sweep["best_model"] == best["fine_tuned_model"]
    assert trials[0]["value"] == best["tunesmith"]["report"]["metrics"]["loss"]["tuned"]
    answer = http.post(
        "/v1/predictions", json={"model": sweep["best_model"], "inputs": "a moving film"}
    )
    assert answer.status_code == 200, answer.text


@pytest.mark.slow
@ON_ONE
def test_twelve_trials_find_a_better_model_than_the_default(
    stack: Service, user: OpenAI, http: httpx.Client
) -> None:
    """The default trains too little; the winner is judged on rows that the sweep has not seen."""
    records = faq_categories(120 + 56 + 60)
    job = job_on(user, records[:176], heldout=56, n_epochs=2, batch_size=32)
    sweep = swept(
        http,
        {
            "job": job,
            "parameters": {
                RATE: {"type": "float", "low": 0.3, "high": 20.0, "log": True},
                RANK: {"type": "categorical", "choices": [4, 16]},
                BATCH: {"type": "categorical", "choices": [8, 16, 32]},
                DECAY: {"type": "float", "low": 0.0, "high": 0.1, "step": 0.05},
            },
            "metric": "accuracy",
            "algorithm": "tpe",
            "max_trials": 12,
            "seed": 1,
        },
        seconds=16 * JOB_SECONDS,
    )
    trials = trials_of(http, sweep)
    assert len(trials) == 12
    values = [trial["value"] for trial in trials if trial["value"] is not None]
    assert sweep["best_trial"]["value"] == max(values)
    plain = http.post(JOBS, json=job).json()["id"]
    default = ended(http, f"{JOBS}/{plain}", 4 * JOB_SECONDS)
    unseen = records[176:]
    found = hits_of(http, sweep["best_model"], unseen)
    usual = hits_of(http, default["fine_tuned_model"], unseen)
    low, high = interval_of_mean(found - usual)
    sys.stdout.write(
        f"default {usual.mean():.3f}, best {found.mean():.3f}, gain {low:.3f} to {high:.3f}; "
        f"{sweep['best_trial']['parameters']}; {sweep['trials']}\n"
    )
    for trial in trials:
        sys.stdout.write(f"{trial['state']} {trial['value']} {trial['reason']}\n")
    assert low > 0
    assert sweep["trials"]["pruned"] >= 2


def hits_of(http: httpx.Client, model: str, records: list[dict[str, Any]]) -> np.ndarray:
    """Return 1 for each record whose label a model predicts, and 0 for the others."""
    labels: list[str] = []
    for start in range(0, len(records), 200):
        texts = [record["text"] for record in records[start : start + 200]]
        answer = http.post("/v1/predictions", json={"model": model, "inputs": texts}, timeout=600)
        labels += [found[0]["label"] for found in answer.json()["predictions"]]
    pairs = zip(labels, records, strict=True)
    return np.array([float(label == record["label"]) for label, record in pairs])


def interval_of_mean(differences: np.ndarray) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean of paired differences."""
    drawn = np.random.default_rng(0).choice(differences, (4_000, len(differences)))
    low, high = np.percentile(drawn.mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


@pytest.mark.slow
@ON_ONE
def test_the_example_of_the_documentation_runs(stack: Service) -> None:
    page = (REPOSITORY / "docs" / "sweeps.md").read_text()
    program = page.split("```python\n")[1].split("```")[0]
    environment = dict(stack.environment)
    environment |= {"OPENAI_BASE_URL": stack.base_url, "OPENAI_API_KEY": stack.key}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "best: ft:all-minilm-l6-v2:" in done.stdout
