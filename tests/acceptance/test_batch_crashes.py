"""Whatever dies in the middle of a batch, each of its requests has exactly one result."""

import random
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from openai import APIConnectionError, OpenAI
from openai.types import Batch

from tests.conftest import ENGINES_OF_DATABASE, INSTALLATIONS
from tests.support.batching import (
    ENDED,
    chat_line,
    create,
    refuse_lost_and_doubled,
    results_of,
)
from tests.support.fake_engine import ANSWER, UNHURRIED, FakeEngine
from tests.support.polling import eventually
from tests.support.service import Service, running_service

LEASE_SECONDS = "2"


@pytest.fixture(params=ENGINES_OF_DATABASE)
def installation(
    request: pytest.FixtureRequest, tmp_path: Path, models_dir: Path, fake_engine: FakeEngine
) -> dict[str, str]:
    """What all API processes of one installation are told."""
    url = f"sqlite:///{tmp_path}/tunesmith.db"
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_url")
    return {
        "DATABASE_URL": url,
        "STORAGE_URL": f"file://{tmp_path}/storage",
        "BROKER_URL": f"filesystem://{tmp_path}/broker",
        "MODELS_DIR": str(models_dir),
        "ENGINE_URL": fake_engine.url,
        "LEASE_TTL_SECONDS": LEASE_SECONDS,
        "SWEEP_INTERVAL_SECONDS": "0.1",
        "BATCH_PARALLEL": "4",
    }


@contextmanager
def running_api(directory: Path, settings: dict[str, str]) -> Iterator[Service]:
    directory.mkdir()
    with running_service("api", directory, settings) as service:
        yield service


def unhurried(count: int) -> tuple[list[str], list[Any]]:
    """Return custom ids, and a line for each that takes the engine a while."""
    mark = secrets.token_hex(4)
    asked = [f"request {number}" for number in range(count)]
    return asked, [chat_line(one, f"{UNHURRIED}, {one} of {mark}") for one in asked]


def completed(client: OpenAI, batch: Batch) -> int:
    counts = client.batches.retrieve(batch.id).request_counts
    return counts.completed if counts else 0


def holder_of(service: Service, batch_id: str) -> int | None:
    """Return the process id of who holds a batch."""
    with service.database() as database, database.read() as connection:
        owner = connection.exec_driver_sql(
            f"SELECT lease_owner FROM batches WHERE id = '{batch_id}' AND status = 'in_progress'"
        ).scalar()
    return int(owner.split(":")[1]) if owner else None


def wait_until_completed(client: OpenAI, batch: Batch) -> Batch:
    ended = eventually(
        lambda: (seen := client.batches.retrieve(batch.id)).status in ENDED and seen,
        what="the batch has ended",
        within_seconds=300,
    )
    assert isinstance(ended, Batch)
    assert ended.status == "completed", ended
    return ended


@pytest.mark.parametrize("installation", ENGINES_OF_DATABASE[:1], indirect=True)
def test_a_killed_api_is_followed_by_another(
    installation: dict[str, str], tmp_path: Path, fake_engine: FakeEngine
) -> None:
    asked, lines = unhurried(120)
    with (
        running_api(tmp_path / "first", installation) as first,
        running_api(tmp_path / "second", installation) as second,
    ):
        with first.client() as client:
            batch = create(client, lines)
            eventually(lambda: completed(client, batch) >= 20, what="some are answered")
        services = {service.pid("api"): service for service in (first, second)}
        killed = services.pop(eventually(lambda: holder_of(first, batch.id), what="it is held"))
        killed.kill("api")
        (survivor,) = services.values()
        with survivor.client(first.key) as client:
            assert completed(client, batch) < len(asked)
            ended = wait_until_completed(client, batch)
            assert (ended.request_counts and ended.request_counts.completed) == len(asked)
            results = results_of(client, ended)
    refuse_lost_and_doubled(asked, results)
    contents = [one["response"]["body"]["choices"][0]["message"]["content"] for one in results]
    assert set(contents) == {"".join(ANSWER)}
    # At most what is answered between two recordings was asked for nothing.
    sent = Counter(custom_ids_of(fake_engine, lines))
    assert 1 <= max(sent.values()) <= 2
    assert sum(sent.values()) <= len(asked) + 40 + 4


@pytest.mark.slow
@pytest.mark.parametrize("stack", INSTALLATIONS[:1], indirect=True, scope="session")
def test_api_and_engine_are_killed_while_a_real_model_answers(stack: Service, user: OpenAI) -> None:
    asked = [f"request {number}" for number in range(32)]
    settings = {"max_completion_tokens": 8, "temperature": 0}
    lines = [chat_line(one, f"Say something about {one}.", **settings) for one in asked]
    batch = create(user, lines)
    eventually(
        lambda: completed(user, batch),
        what="answers are stored",
        within_seconds=180,
        every_seconds=0.02,
    )
    stack.kill("engine")
    stack.kill("api")

    def is_back() -> bool:
        with suppress(APIConnectionError):
            return completed(user, batch) < len(asked)
        return False

    eventually(is_back, what="the API answers again, before all is done", within_seconds=180)
    ended = wait_until_completed(user, batch)
    results = results_of(user, ended)
    refuse_lost_and_doubled(asked, results)
    # Who waits for an answer gets the same.
    alone = user.chat.completions.create(**lines[7]["body"])
    assert results[7]["response"]["body"]["choices"] == [alone.choices[0].to_dict()]


@pytest.mark.slow
def test_whatever_is_killed_whenever_every_request_has_one_result(
    installation: dict[str, str], tmp_path: Path
) -> None:
    chance = random.Random(5)
    with ExitStack() as stack:
        services = [
            stack.enter_context(running_api(tmp_path / f"api-{number}", installation))
            for number in range(2)
        ]
        keys = [services[0].key, services[0].new_key(project="other")]
        made = []
        for key in (*keys, keys[0]):
            asked, lines = unhurried(200)
            with services[0].client(key) as client:
                made.append((key, asked, create(client, lines)))
        for number in range(6):
            # Anywhere between two recordings, and in the middle of validating or ending, too.
            time.sleep(chance.uniform(0.2, 2))
            victim = services.pop(chance.randrange(2))
            victim.kill("api")
            services.append(
                stack.enter_context(running_api(tmp_path / f"next-{number}", installation))
            )
        for key, asked, batch in made:
            with services[-1].client(key) as client:
                ended = wait_until_completed(client, batch)
                refuse_lost_and_doubled(asked, results_of(client, ended))


def custom_ids_of(engine: FakeEngine, lines: list[Any]) -> list[str]:
    """Return which of the lines the engine was asked, each as often as it was."""
    known = {one["body"]["messages"][0]["content"]: one["custom_id"] for one in lines}
    prompts = [one["messages"][0]["content"] for one in engine.requests if "messages" in one]
    return [known[prompt] for prompt in prompts if prompt in known]
