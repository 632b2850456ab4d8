"""Ways into the API for wire tests, each test in a project of its own; and, on the whole stack, the
one finished job that most tests look at."""

import secrets
from collections.abc import Iterator

import httpx
import pytest
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint

from tests.support.answers import ask
from tests.support.jobs import EPOCHS, STEPS_PER_EPOCH, Run, create_job, wait_until_ended
from tests.support.service import Service
from tests.support.wire import strict_list


@pytest.fixture
def key(api: Service) -> str:
    """The key of a new project."""
    return api.new_key(project=secrets.token_hex(4))


@pytest.fixture(scope="session")
def shared_client(api: Service) -> Iterator[OpenAI]:
    with api.client() as client:
        yield client


@pytest.fixture
def client(shared_client: OpenAI, key: str) -> OpenAI:
    """OpenAI's own client, with the key of the test's project."""
    return shared_client.with_options(api_key=key)


@pytest.fixture
def http(api: Service, key: str) -> Iterator[httpx.Client]:
    with api.http(key) as http:
        yield http


@pytest.fixture
def anonymous(api: Service) -> Iterator[httpx.Client]:
    """A client without a key."""
    with api.http(None) as http:
        yield http


@pytest.fixture(scope="session")
def user(stack: Service) -> Iterator[OpenAI]:
    """OpenAI's own client of the whole stack."""
    with stack.client() as user:
        yield user


@pytest.fixture(scope="session")
def run(user: OpenAI) -> Run:
    """A short job on a part of the sample data."""
    job = create_job(
        user,
        records=4 * STEPS_PER_EPOCH,
        validation_records=2,
        hyperparameters={"n_epochs": EPOCHS, "batch_size": 4},
        suffix="desk",
        seed=7,
        metadata={"team": "support"},
    )
    statuses = [job.status]

    def note(seen: FineTuningJob) -> None:
        if seen.status != statuses[-1]:
            statuses.append(seen.status)

    ended = wait_until_ended(user, job, note)
    assert ended.status == "succeeded", ended.error
    assert ended.fine_tuned_model is not None
    # The moment it has succeeded, its model can be called.
    assert ask(user, ended.fine_tuned_model, max_completion_tokens=1).choices
    return Run(ended, statuses, ended.fine_tuned_model)


@pytest.fixture(scope="session")
def checkpoints(user: OpenAI, run: Run) -> list[FineTuningJobCheckpoint]:
    """The checkpoints of the job, newest first."""
    answer = user.fine_tuning.jobs.checkpoints.with_raw_response.list(run.job.id)
    keys = {"first_id", "last_id", "has_more"}
    return strict_list(answer, FineTuningJobCheckpoint, keys=keys)
