"""Two real engines behind one API: one dies under load, and both forget what is deleted."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from openai import APIError, OpenAI

from app.cli.stack import is_port_free
from tests.support.factories import BASE_MODEL
from tests.support.jobs import create_job, wait_until_ended
from tests.support.polling import eventually
from tests.support.ports import free_port
from tests.support.service import Service, running_service

# A second stack takes its time to start.
pytestmark = pytest.mark.slow

HELLO: Any = [{"role": "user", "content": "hello"}]
# Far longer than an answer takes here, and far shorter than any time-out of the service.
HANGS_SECONDS = 90
STREAMS = 8


@pytest.fixture(scope="module")
def pair(
    tmp_path_factory: pytest.TempPathFactory, models_dir: Path, base_model_dir: Path
) -> Iterator[Service]:
    """An installation with two engines, both of which answer."""
    settings = {
        "MODELS_DIR": str(models_dir),
        "ENGINES": "2",
        "ENGINE_PORT": str(two_free_ports()),
        "ENGINE_PRELOAD": BASE_MODEL,
    }
    with running_service("up", tmp_path_factory.mktemp("pair"), settings) as service:
        for url in urls_of(service):
            eventually(lambda url=url: is_ready(url), what=f"{url} answers", within_seconds=90)
        yield service


@pytest.fixture(scope="module")
def user(pair: Service) -> Iterator[OpenAI]:
    with pair.client() as user:
        yield user


def two_free_ports() -> int:
    while not is_port_free("127.0.0.1", (port := free_port()) + 1):
        pass
    return port


def urls_of(service: Service) -> list[str]:
    return service.settings.engine_url.split(",")


def is_ready(url: str) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(f"{url}/health", timeout=5, verify=False).is_success
    return False


def process_of(service: Service, url: str) -> psutil.Process:
    """Return the process of the engine with a URL."""
    port = url.rpartition(":")[2]
    for process in service.processes():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            is_engine = "worker.serving.server" in process.cmdline()
            if is_engine and process.environ()["ENGINE_PORT"] == port:
                return process
    raise AssertionError(f"there is no engine at {url}")


def running_on(url: str) -> int:
    stats: dict[str, Any] = httpx.get(f"{url}/v1/engine/stats", timeout=10, verify=False).json()
    return int(stats["running"] + stats["waiting"])


def stream(user: OpenAI, begun: threading.Barrier) -> str:
    """Return how a long stream ended: `whole`, or `error`; never later than it may.

    Args:
        begun: where it waits, once, for all others to have their first words, too.
    """
    patient = user.with_options(timeout=HANGS_SECONDS)
    try:
        for number, chunk in enumerate(
            patient.chat.completions.create(
                model=BASE_MODEL, messages=HELLO, stream=True, max_tokens=200, temperature=2
            )
        ):
            assert chunk.choices
            # The first chunk names the role only.
            if number == 1:
                begun.wait(HANGS_SECONDS)
    except APIError:
        return "error"
    return "whole"


def ask(user: OpenAI) -> str:
    answer = user.chat.completions.create(
        model=BASE_MODEL, messages=HELLO, max_tokens=20, temperature=2
    )
    assert answer.choices
    return "whole"


def test_one_engine_is_killed_under_load_and_the_other_takes_over(
    pair: Service, user: OpenAI
) -> None:
    urls = urls_of(pair)
    begun = threading.Barrier(STREAMS + 1)
    with ThreadPoolExecutor(24) as pool:
        streams = [pool.submit(stream, user, begun) for _ in range(STREAMS)]
        begun.wait(HANGS_SECONDS)
        plain = [pool.submit(ask, user) for _ in range(8)]
        eventually(
            lambda: min(map(running_on, urls)) >= 2, what="both engines work", every_seconds=0.02
        )
        victim = process_of(pair, urls[0])
        victim.kill()
        killed_at = time.monotonic()
        # Nobody waits for the engine to come back: the other one answers.
        assert ask(user) == "whole"
        # Nobody has heard a word of a plain answer, so that another engine gives it.
        assert {one.result(HANGS_SECONDS) for one in plain} == {"whole"}
        ends = [one.result(HANGS_SECONDS) for one in streams]
        assert set(ends) == {"whole", "error"}
        assert time.monotonic() - killed_at < HANGS_SECONDS
    eventually(lambda: is_ready(urls[0]), what="it is restarted", within_seconds=90)
    assert process_of(pair, urls[0]).pid != victim.pid
    eventually(lambda: ups(pair) == {1.0}, what="the API uses it again")
    assert f"{urls[0]} answers" in pair.tunesmith("doctor")


def ups(service: Service) -> set[float]:
    """Return what the API says of all engines."""
    text = httpx.get(f"{service.root_url}/metrics", verify=False).text
    lines = (line for line in text.splitlines() if line.startswith("tunesmith_engine_up{"))
    return {float(line.rpartition(" ")[2]) for line in lines}


def test_a_deleted_model_is_gone_from_both_engines_within_a_second(
    pair: Service, user: OpenAI
) -> None:
    job = create_job(user, records=2, hyperparameters={"n_epochs": 1, "batch_size": 2})
    name = wait_until_ended(user, job).fine_tuned_model
    assert name is not None
    (checkpoint,) = user.fine_tuning.jobs.checkpoints.list(job.id)
    names = [name, checkpoint.fine_tuned_model_checkpoint]
    for one in names:
        assert user.chat.completions.create(model=one, messages=HELLO, max_tokens=1).choices
    loaded = {
        model["id"]: model["root"]
        for url in urls_of(pair)
        for model in httpx.get(f"{url}/v1/models", verify=False).json()["data"]
    }
    for url in urls_of(pair):
        for one in names:
            body = {"lora_name": one, "lora_path": loaded[one]}
            httpx.post(
                f"{url}/v1/load_lora_adapter", json=body, timeout=60, verify=False
            ).raise_for_status()
            assert asked(url, one) == 200
    deleted_at = time.monotonic()
    # With a model goes the name of its last checkpoint.
    user.models.delete(name)
    assert {asked(url, one) for url in urls_of(pair) for one in names} == {404}
    assert time.monotonic() - deleted_at < 1


def asked(url: str, model: str) -> int:
    """Ask an engine past the API, and return its status."""
    body = {"model": model, "messages": HELLO, "max_tokens": 1}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60, verify=False).status_code
