"""What single checks of an inspection find, on each engine; the doctor's tests run them all."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Connection, text, update

from app.db.database import open_database
from app.db.migrations import upgrade
from app.db.repositories import jobs, leases, locks
from app.db.tables import events
from app.db.tables import jobs as job_table
from app.domain.job_state import JobStatus
from app.resources import Resources
from app.services.inspection.content import check_content
from app.services.inspection.database import check_database
from app.services.inspection.findings import Finding
from app.services.inspection.jobs import check_jobs
from app.services.inspection.surroundings import check_storage
from app.services.jobs import PAUSE_REQUESTED
from app.services.sweeper import LOCK, LOCK_TTL_SECONDS
from tests.support.factories import (
    add_adapter,
    add_job,
    add_job_in,
    add_project,
    add_queued_job,
    add_running_job,
)
from tests.support.sweeping import opened
from worker.trunk.listing import write_listing

WEIGHTS = "adapter/adapter_model.safetensors"


@pytest.fixture
def broker_url(tmp_path: Path) -> str:
    """One of them does: nothing here is sent."""
    return f"filesystem://{tmp_path}/broker"


@pytest.fixture
def swept(resources: Resources) -> Resources:
    """An installation whose service swept a moment ago."""
    with resources.database.write() as connection:
        locks.acquire(connection, LOCK, "someone", LOCK_TTL_SECONDS)
    return resources


def set_age(resources: Resources, seconds: float) -> None:
    """Move every event back in time."""
    with resources.database.write() as connection:
        connection.execute(update(events).values(created_at=events.c.created_at - seconds))


@contextmanager
def unwritable(path: Path) -> Iterator[None]:
    """Let nobody write a path: permissions do not hold for root, a flag of the file system does."""
    before = path.stat().st_mode
    is_root = os.geteuid() == 0
    if is_root:
        chattr = shutil.which("chattr")
        if chattr is None or subprocess.run([chattr, "+i", path], capture_output=True).returncode:
            pytest.skip("no immutable files here")
    else:
        path.chmod(before & ~0o222)
    try:
        yield
    finally:
        if is_root:
            subprocess.run(["chattr", "-i", path], check=True)
        else:
            path.chmod(before)


def looked_at(
    check: Callable[[Resources], Iterator[Finding]], resources: Resources
) -> dict[str, Finding]:
    """Run one check without a process of its own, and return what it found by its name."""
    findings = list(check(resources))
    found = {one.check: one for one in findings}
    assert len(found) == len(findings), "one finding a check"
    return found


def place_adapter(resources: Resources) -> Path:
    """Put a model where a worker would, and return the directory of its checkpoint."""
    with resources.database.write() as connection:
        adapter = add_adapter(connection, add_project(connection), "ft:a")
    scratch = resources.storage.scratch()
    (scratch / "adapter").mkdir()
    (scratch / WEIGHTS).write_bytes(b"w" * 20)
    (scratch / "adapter" / "manifest.json").write_text("{}")
    write_listing(scratch)
    resources.storage.publish(adapter.checkpoint_prefix, scratch)
    return resources.storage.directory(adapter.checkpoint_prefix)


def replace_by_a_file(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint / "adapter")
    (checkpoint / "adapter").write_text("in the way")


@pytest.mark.parametrize("name", ["tunesmith.db", "."])
def test_a_file_that_cannot_be_written_is_told(tmp_path: Path, name: str) -> None:
    # Closed by all, so that the files beside it are gone and would have to be made.
    with opened(open_database(f"sqlite:///{tmp_path}/alone/tunesmith.db"), "", tmp_path) as made:
        upgrade(made.database)
    looking = Resources(made.settings, read_only=True)
    directory = tmp_path / "alone"
    with unwritable(directory / name):
        found = looked_at(check_database, looking)["database"]
    assert found.state == "FAIL"
    assert f"{directory / 'tunesmith.db'} cannot be written: " in found.found
    assert "read-only mounts" in (found.advice or "")
    assert looked_at(check_database, looking)["database"].state == "ok"
    looking.database.engine.dispose()


@pytest.mark.parametrize("below", ["", "/below"])
def test_storage_that_is_no_directory_is_told(
    resources: Resources, tmp_path: Path, below: str
) -> None:
    place = tmp_path / "file"
    place.write_text("in the way")
    settings = replace(resources.settings, storage_url=f"file://{place}{below}")
    found = looked_at(check_storage, Resources(settings, read_only=True))["storage"]
    assert found.state == "FAIL"
    assert found.found == f"{place} is there and not a directory"


def test_adapters_that_are_as_listed_are_ok(resources: Resources) -> None:
    place_adapter(resources)
    found = looked_at(check_content, resources)["content"]
    assert found.state == "ok"
    assert "(names and sizes; digests are compared whenever one is loaded)" in found.found


def test_an_adapter_that_was_made_elsewhere_needs_no_list(resources: Resources) -> None:
    checkpoint = place_adapter(resources)
    (checkpoint / "adapter" / "manifest.json").unlink()
    (checkpoint / "files.json").unlink()
    assert looked_at(check_content, resources)["content"].state == "ok"


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda d: os.truncate(d / WEIGHTS, 10), f"{WEIGHTS} has 10 of 20 bytes"),
        (lambda d: (d / WEIGHTS).unlink(), f"{WEIGHTS} is missing"),
        (lambda d: (d / "adapter" / "manifest.json").unlink(), "adapter/manifest.json is missing"),
        (lambda d: (d / "files.json").unlink(), "files.json is missing"),
        (lambda d: (d / "files.json").write_text("{"), "files.json is not a list of files"),
        (lambda d: (d / "files.json").write_bytes(b'{"\xff": 1}'), "files.json is not a list"),
        (lambda d: (d / "files.json").write_text('{"adapter/x": 1}'), "files.json is not a list"),
        (lambda d: (d / "files.json").write_text("{}"), "is not listed in files.json"),
        (replace_by_a_file, "it is not a directory"),
    ],
    ids=[
        "cut short",
        "no weights",
        "no manifest",
        "no list",
        "no JSON",
        "no text",
        "another shape",
        "unlisted",
        "no directory",
    ],
)
def test_a_damaged_adapter_is_named(
    resources: Resources, damage: Callable[[Path], object], told: str
) -> None:
    damage(place_adapter(resources))
    found = looked_at(check_content, resources)["content"]
    assert found.state == "FAIL"
    assert "/adapter of ft:a is damaged: " in found.found
    assert told in found.found
    assert "gone" not in found.found


def test_what_waits_for_long_is_told(swept: Resources) -> None:
    with swept.database.write() as connection:
        project = add_project(connection)
        queued = add_queued_job(connection, project)
        validating = add_job(connection, project)
        pausing = add_running_job(connection, project)
        jobs.request_pause(connection, pausing.id, True, PAUSE_REQUESTED)
    waiting = {"dispatch": queued, "validation": validating, "pauses": pausing}
    found = looked_at(check_jobs, swept)
    assert {check: found[check].state for check in waiting} == dict.fromkeys(waiting, "ok")
    set_age(swept, 700)
    found = looked_at(check_jobs, swept)
    for check, job in waiting.items():
        assert found[check].state == "warn"
        assert f"{job.id} for 12 min" in found[check].found
    assert all(one.state != "FAIL" for one in found.values())
    # None of them waits for these any more.
    with swept.database.write() as connection:
        leases.mark_dispatched(connection, [queued.id])
        connection.execute(update(job_table).values(pause_requested=False))
        connection.execute(
            update(job_table).where(job_table.c.id == validating.id).values(status="paused")
        )
    found = looked_at(check_jobs, swept)
    assert {check: found[check].state for check in waiting} == dict.fromkeys(waiting, "ok")


def test_that_no_worker_claims_anything_is_told(resources: Resources) -> None:
    def queue() -> Finding:
        return looked_at(check_jobs, resources)["queue"]

    assert queue().state == "ok"
    with resources.database.write() as connection:
        project = add_project(connection)
        add_running_job(connection, project, lease_seconds=-1)
        oldest = add_queued_job(connection, project)
        leases.mark_dispatched(connection, [oldest.id])
    set_age(resources, 100)
    with resources.database.write() as connection:
        add_queued_job(connection, project)
    assert queue().state == "ok"
    set_age(resources, 30)
    assert queue().state == "FAIL"
    assert queue().found == f"2 queued, {oldest.id} for 2 min, and no job is running"
    assert "Start a worker (`tunesmith worker`" in (queue().advice or "")
    with resources.database.write() as connection:
        add_running_job(connection, project)
    assert queue().state == "ok"
    assert "all workers are busy, 1 running" in queue().found


def test_a_service_that_is_down_is_told(swept: Resources) -> None:
    def sweep() -> Finding:
        return looked_at(check_jobs, swept)["sweep"]

    assert sweep().state == "ok"
    with swept.database.write() as connection:
        connection.execute(text("UPDATE locks SET expires_at = expires_at - 600"))
    assert sweep().state == "warn"
    assert sweep().found == "last 10 min ago: the service is down"
    with swept.database.write() as connection:
        connection.execute(text("DELETE FROM locks"))
    assert (sweep().state, sweep().found) == ("warn", "never")


@pytest.mark.parametrize(
    ("add", "state"),
    [
        (add_job, "FAIL"),
        (add_queued_job, "FAIL"),
        (partial(add_running_job, lease_seconds=-1), "FAIL"),
        (add_running_job, "warn"),
        (partial(add_job_in, status=JobStatus.PAUSED), "warn"),
    ],
    ids=["validating", "queued", "expired", "held", "paused"],
)
def test_a_service_that_is_down_fails_the_jobs_that_wait_for_it(
    swept: Resources, add: Callable[[Connection, str], object], state: str
) -> None:
    with swept.database.write() as connection:
        add(connection, add_project(connection))
    assert looked_at(check_jobs, swept)["sweep"].state == "ok"
    with swept.database.write() as connection:
        connection.execute(text("UPDATE locks SET expires_at = expires_at - 600"))
    found = looked_at(check_jobs, swept)["sweep"]
    assert found.state == state
    assert found.found.endswith("; jobs that wait for it: 1") == (state == "FAIL")
