"""One row through the API: upload, job, report, prediction."""

import time
from dataclasses import dataclass
from typing import Any

import httpx
from openai import OpenAI

from app.domain.metrics import METRICS
from tests.acceptance.table.rows import Row, Size
from tests.support.jobs import numbers_of, story_of, wait_until_ended


@dataclass(frozen=True)
class Result:
    """What came of a row.

    Attributes:
        losses: on the held-out data before the first step and after the last.
        seconds: from the job's creation to its end.
        answer: of the tuned model, to an input that it has not seen.
    """

    row: Row
    size: Size
    base: float
    tuned: float
    losses: tuple[float, float]
    seconds: float
    answer: Any

    @property
    def gain(self) -> float:
        gain = METRICS[self.row.metric].gain(self.base, self.tuned)
        assert gain is not None
        return gain

    @property
    def is_enough(self) -> bool:
        """Whether it gained what is asked for."""
        if self.size.margin is None:
            return self.losses[1] < self.losses[0]
        bar = self.size.bar
        reaches_bar = bar is None or (METRICS[self.row.metric].gain(bar, self.tuned) or 0) >= 0
        return reaches_bar and self.gain >= self.size.margin


def run(client: OpenAI, http: httpx.Client, row: Row, size: Size) -> Result:
    """Train on a part of a row's data and ask the result."""
    records = row.records(size.train + size.heldout)
    training, heldout = records[: size.train], records[size.train :]
    files = [
        client.files.create(file=(f"{row.name}-{part}", row.upload(chosen)), purpose="fine-tune").id
        for part, chosen in (("train", training), ("heldout", heldout))
    ]
    hyperparameters = {
        "n_epochs": size.epochs,
        "batch_size": row.batch_size,
        "learning_rate_multiplier": row.rate,
    }
    method: Any = {"type": row.method, row.method: {"hyperparameters": hyperparameters}}
    started = time.monotonic()
    job = client.fine_tuning.jobs.create(
        model=row.model,
        training_file=files[0],
        validation_file=files[1],
        method=method,
        seed=7,
        extra_body={
            "tunesmith": {
                "task": row.task,
                "adapter": dict(row.adapter),
                "training": dict(row.training),
            }
        },
    )
    ended = wait_until_ended(client, job, within_seconds=3_600)
    seconds = time.monotonic() - started
    assert ended.status == "succeeded", ended.error
    assert ended.fine_tuned_model is not None
    told = ended.to_dict()["tunesmith"]["report"]["metrics"][row.metric]  # type: ignore[index]
    answer = ask(client, http, row, ended.fine_tuned_model, row.inputs(heldout[0]))
    losses = [
        numbers["valid_loss"]
        for numbers in numbers_of(story_of(client, job))
        if "valid_loss" in numbers
    ]
    return Result(row, size, told["base"], told["tuned"], (losses[0], losses[-1]), seconds, answer)


def ask(client: OpenAI, http: httpx.Client, row: Row, model: str, asked: Any) -> Any:
    """Return what a tuned model answers."""
    if row.task == "text-generation":
        chat = client.chat.completions.create(model=model, messages=asked, max_tokens=32)
        return chat.choices[0].message.content
    response = http.post("/v1/predictions", json={"model": model, "inputs": asked})
    assert response.is_success, response.text
    body = response.json()
    assert body["task"] == row.task
    return body["predictions"][0]
