"""What the metrics say of rows, on each engine and with each broker."""

import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text, update

from app.api.routes.metrics import metrics
from app.db.clock import now
from app.db.repositories import counters, leases
from app.db.tables import events
from app.db.tables import jobs as job_table
from app.domain.job_state import JobStatus
from app.resources import Resources
from app.services.sweeper import Sweeper
from tests.support.factories import add_project, add_queued_job, add_running_job
from tests.support.ports import free_port
from tests.support.sweeping import queued

COUNTERS = ("redispatches", "fenced_writes", "lease_steals", "repeated_steps")


def values(resources: Resources) -> dict[str, float]:
    """Return each sample without labels, and those of jobs by their status."""
    found = {}
    for family in text_string_to_metric_families(bytes(metrics(resources).body).decode()):
        assert family.documentation, family.name
        for sample in family.samples:
            name = sample.labels.get("status") or sample.name.removeprefix("tunesmith_")
            found[name] = sample.value
    return found


def test_an_installation_without_work(resources: Resources) -> None:
    found = values(resources)
    assert found.pop("storage_free_bytes") > 0
    assert found == {
        **dict.fromkeys(JobStatus, 0),
        **{f"{name}_total": 0 for name in COUNTERS},
        "database_connected": 1,
        "broker_connected": 1,
        "engine_up": 1,
        "engine_outstanding_requests": 0,
        "oldest_expired_lease_seconds": 0,
        "outbox_lag_seconds": 0,
        "oldest_queued_seconds": 0,
        "batches_under_way": 0,
        "batch_requests_waiting": 0,
        "sweeper_last_run_seconds": float("inf"),
    }


def test_jobs_that_wait(resources: Resources) -> None:
    with resources.database.write() as connection:
        project = add_project(connection)
        for _ in range(2):
            add_queued_job(connection, project)
        add_running_job(connection, project)
        add_running_job(connection, project, lease_seconds=-30)
        add_running_job(connection, project, lease_seconds=-90)
        connection.execute(update(events).values(created_at=events.c.created_at - 40))
    found = values(resources)
    assert (found["queued"], found["running"], found["failed"]) == (2, 3, 0)
    assert found["oldest_expired_lease_seconds"] == pytest.approx(90, abs=5)
    assert found["outbox_lag_seconds"] == pytest.approx(40, abs=5)
    assert found["oldest_queued_seconds"] == pytest.approx(40, abs=5)


def test_a_job_that_was_announced_still_waits_for_a_worker(resources: Resources) -> None:
    with resources.database.write() as connection:
        job = add_queued_job(connection, add_project(connection))
        leases.mark_dispatched(connection, [job.id])
        connection.execute(update(events).values(created_at=events.c.created_at - 40))
    found = values(resources)
    assert found["outbox_lag_seconds"] == 0
    assert found["oldest_queued_seconds"] == pytest.approx(40, abs=5)
    with resources.database.write() as connection:
        leases.claim_next(connection, "someone", 60)
    assert values(resources)["oldest_queued_seconds"] == 0


def test_a_sweep_is_seen_and_ages(resources: Resources, sweeper: Sweeper) -> None:
    sweeper.sweep()
    assert 0 <= values(resources)["sweeper_last_run_seconds"] < 5
    with resources.database.write() as connection:
        connection.execute(text("UPDATE locks SET expires_at = expires_at - 100"))
    assert values(resources)["sweeper_last_run_seconds"] == pytest.approx(100, abs=5)


def test_only_messages_that_are_sent_again_are_counted(
    resources: Resources, sweeper: Sweeper
) -> None:
    queued(resources, 3)
    sweeper.sweep()
    assert values(resources)["redispatches_total"] == 0
    with resources.database.write() as connection:
        connection.execute(update(job_table).values(dispatched_at=now() - 61))
    sweeper.sweep()
    assert values(resources)["redispatches_total"] == 3


def test_counters_are_shown(resources: Resources) -> None:
    with resources.database.write() as connection:
        for number, name in enumerate(COUNTERS, start=1):
            counters.add(connection, name, number)  # type: ignore[arg-type]
    found = values(resources)
    assert [found[f"{name}_total"] for name in COUNTERS] == [1, 2, 3, 4]


@pytest.fixture
def cut_off(resources: Resources) -> Iterator[Resources]:
    """An installation whose database and broker are gone."""
    settings = replace(
        resources.settings,
        database_url=f"postgresql://127.0.0.1:{free_port()}/gone",
        broker_url=f"redis://127.0.0.1:{free_port()}/0",
    )
    cut_off = Resources(settings)
    yield cut_off
    cut_off.database.engine.dispose()


def test_what_does_not_answer_is_told_and_the_rest_shown(cut_off: Resources) -> None:
    found = values(cut_off)
    assert found.pop("storage_free_bytes") > 0
    assert {found.pop("engine_up"), found.pop("engine_outstanding_requests")} == {0, 1}
    assert found == {"database_connected": 0, "broker_connected": 0}


def test_the_broker_is_not_asked_each_time(resources: Resources) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        changed = Resources(replace(resources.settings, broker_url=url))
        for _ in range(10):
            assert values(changed)["broker_connected"] == 0
        silent.setblocking(False)
        asked = 0
        with suppress(BlockingIOError):
            while True:
                silent.accept()[0].close()
                asked += 1
        changed.database.engine.dispose()
    # Once, and once more if a period ended in between.
    assert 1 <= asked <= 2
