"""12: impatient clients repeat their requests while the API dies under them. One job a key."""

import secrets
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx

from tests.chaos.backends import Kind
from tests.chaos.installation import Installation, Plan
from tests.chaos.lab import Lab
from tests.chaos.nemesis import Nemesis
from tests.chaos.outcome import Outcome
from tests.chaos.rows import list_jobs
from tests.chaos.workload import Recipe, Workload

REPLAYED = "idempotent-replayed"
GIVE_UP_SECONDS = 180.0


@dataclass(frozen=True)
class RetriesSize:
    posts: int = 1000
    keys: int = 100
    threads: int = 20
    kills: int = 20


@dataclass
class _Answers:
    """What all clients saw."""

    bodies: dict[str, set[bytes]] = field(default_factory=lambda: defaultdict(set))
    firsts: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    done: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def retries(lab: Lab, kind: Kind, size: RetriesSize) -> Outcome:
    """Post jobs under few keys from many threads, and kill the API meanwhile."""
    with lab.installation(kind, Plan(workers=0)) as installation:
        installation.start()
        nemesis = Nemesis(installation, lab.chance("retries"))
        body = Workload(installation).request(Recipe(1))
        keys = [f"chaos-{number}-{secrets.token_hex(4)}" for number in range(size.keys)]
        answers = _Answers()
        posts = _order(keys, size.posts, nemesis.chance)
        clients = [
            threading.Thread(
                target=_be_a_client,
                args=[installation, body, posts, lab.chance(f"retries {number}"), answers],
                daemon=True,
            )
            for number in range(size.threads)
        ]
        for client in clients:
            client.start()
        _kill_at_times(nemesis, answers, size)
        for client in clients:
            client.join()
        installation.wait_for_api()
        wrong = [*answers.wrong, *_audit(installation, answers, keys)]
        wrong += _other_body(installation, body, keys[0])
        left = installation.stop()
        return Outcome(
            experiment="retries",
            installation=kind,
            faults=nemesis.faults,
            violations=[*wrong, *(f"left over: {process}" for process in left)],
            figures={"jobs": size.keys, "answers": dict(answers.statuses)},
        )


def _order(keys: Sequence[str], posts: int, chance: Random) -> list[str]:
    """Return the key of each request: half of them side by side, half of them spread."""
    each = posts // len(keys)
    together = [key for key in keys for _ in range(each // 2)]
    apart = [key for key in keys for _ in range(each - each // 2)]
    chance.shuffle(apart)
    return [*together, *apart][::-1]  # They are taken from the end.


def _be_a_client(
    installation: Installation,
    body: dict[str, Any],
    posts: list[str],
    chance: Random,
    answers: _Answers,
) -> None:
    """Take requests and repeat each until it has an answer that stands."""
    while posts:
        try:
            key = posts.pop()
        except IndexError:
            return
        deadline = time.monotonic() + GIVE_UP_SECONDS
        patience = chance.choice((0.02, 0.05, 0.2, 1.0))
        while not _try(installation, body, key, patience, answers):
            if time.monotonic() > deadline:
                answers.wrong.append(f"{key}: no answer in {GIVE_UP_SECONDS:.0f} s")
                break
            patience = min(10.0, patience * 2)
            time.sleep(chance.uniform(0.02, 0.3))
        with answers.lock:
            answers.done += 1


def _try(
    installation: Installation, body: dict[str, Any], key: str, patience: float, answers: _Answers
) -> bool:
    """Post once; True when the answer stands."""
    try:
        response = _post(installation, body, key, patience)
    except httpx.TransportError as error:
        with answers.lock:
            answers.statuses[type(error).__name__] += 1
        return False
    with answers.lock:
        answers.statuses[str(response.status_code)] += 1
        if response.status_code == 200:
            is_replay = response.headers.get(REPLAYED) == "true"
            answers.bodies[key].add(response.content)
            answers.firsts[key] += not is_replay
            return True
        if response.status_code == 409:
            told = (response.headers.get("x-should-retry"), response.headers.get("retry-after"))
            if told[0] != "true" or not told[1]:
                answers.wrong.append(f"{key}: 409 with x-should-retry, retry-after = {told}")
        elif response.status_code != 503:
            answers.wrong.append(f"{key}: {response.status_code} {response.text[:200]}")
            return True
    return False


def _kill_at_times(nemesis: Nemesis, answers: _Answers, size: RetriesSize) -> None:
    """Kill the API whenever another share of the requests is through."""
    moments = sorted(nemesis.chance.sample(range(size.posts), size.kills))
    for moment in moments:
        while answers.done < moment:
            time.sleep(0.005)
        nemesis.installation.wait_for_api()
        nemesis.pause(0.5)
        nemesis.kill_api()


def _audit(installation: Installation, answers: _Answers, keys: Sequence[str]) -> list[str]:
    with installation.database() as database, database.read() as connection:
        rows = len(list_jobs(connection, installation.project_id))
    wrong = [f"{rows} jobs for {len(keys)} keys"] if rows != len(keys) else []
    wrong += [
        f"{key}: {len(b)} different answers" for key, b in answers.bodies.items() if len(b) > 1
    ]
    wrong += [f"{key}: {n} answers not replayed" for key, n in answers.firsts.items() if n > 1]
    wrong += [f"{key}: never answered" for key in keys if key not in answers.bodies]
    return wrong


def _other_body(installation: Installation, body: dict[str, Any], key: str) -> list[str]:
    """Return what is wrong with the answer to a key that is used for something else."""
    response = _post(installation, body | {"seed": 99}, key, 30)
    if response.status_code != 422:
        return [f"another body under a known key: {response.status_code} {response.text[:200]}"]
    return []


def _post(
    installation: Installation, body: dict[str, Any], key: str, seconds: float
) -> httpx.Response:
    service = installation.service
    with service.http(service.key) as client:
        return client.post(
            "/v1/fine_tuning/jobs", json=body, headers={"Idempotency-Key": key}, timeout=seconds
        )
