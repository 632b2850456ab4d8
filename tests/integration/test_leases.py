from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import select, update

from app.db.clock import now
from app.db.database import Database
from app.db.repositories import jobs, leases
from app.db.tables import jobs as job_table
from app.domain.errors import LeaseLost
from app.domain.job_state import JobStatus
from tests.support.factories import add_job, add_project, add_queued_job, add_running_job

THREADS = 8


def set_columns(database: Database, job_id: str, **columns: Any) -> None:
    with database.write() as connection:
        connection.execute(update(job_table).where(job_table.c.id == job_id).values(**columns))


def claim_all_at_once(database: Database, claims: int) -> list[str]:
    """Let eight threads claim as often as they can; return the ids of the claimed jobs."""
    barrier = Barrier(THREADS)

    def claim(number: int) -> list[str]:
        barrier.wait()
        claimed = []
        for _ in range(claims):
            with database.write() as connection:
                job = leases.claim_next(connection, f"owner-{number}", 60)
            if job is not None:
                claimed.append(job.id)
        return claimed

    with ThreadPoolExecutor(max_workers=THREADS) as pool:
        return [job_id for claimed in pool.map(claim, range(THREADS)) for job_id in claimed]


def test_of_eight_that_claim_one_job_one_gets_it(database: Database) -> None:
    with database.write() as connection:
        project = add_project(connection)
        job = add_queued_job(connection, project)
    assert claim_all_at_once(database, claims=1) == [job.id]
    with database.read() as connection:
        claimed = jobs.get(connection, project, job.id)
    assert (claimed.lease_epoch, claimed.attempts) == (1, 1)


def test_many_jobs_are_each_claimed_once(database: Database) -> None:
    with database.write() as connection:
        project = add_project(connection)
        made = [add_queued_job(connection, project) for _ in range(20)]
    claimed = claim_all_at_once(database, claims=20)
    assert sorted(claimed) == sorted(job.id for job in made)


def test_a_claim_starts_an_attempt(database: Database) -> None:
    with database.write() as connection:
        add_queued_job(connection, add_project(connection))
        job = leases.claim_next(connection, "me", 60)
        moment = connection.scalar(select(now()))
    assert job is not None
    assert job.status is JobStatus.RUNNING
    assert (job.lease_owner, job.lease_epoch, job.attempts) == ("me", 1, 1)
    assert job.lease_expires_at == pytest.approx(moment + 60, abs=5)
    assert job.started_at == pytest.approx(moment, abs=5)


def test_only_queued_jobs_are_claimed(database: Database) -> None:
    with database.write() as connection:
        project = add_project(connection)
        add_job(connection, project)
        add_running_job(connection, project)
        assert leases.claim_next(connection, "me", 60) is None


def test_priority_comes_before_age(database: Database) -> None:
    with database.write() as connection:
        project = add_project(connection)
        made = [add_queued_job(connection, project) for _ in range(4)]
    for job, (priority, created_at) in zip(made, [(0, 2), (0, 1), (5, 9), (-1, 0)], strict=True):
        set_columns(database, job.id, priority=priority, created_at=float(created_at))
    with database.write() as connection:
        claimed = [leases.claim_next(connection, "me", 60) for _ in range(4)]
    assert [job.id for job in claimed if job] == [made[2].id, made[1].id, made[0].id, made[3].id]


def test_a_renewal_moves_the_end_of_a_lease(database: Database) -> None:
    with database.write() as connection:
        project = add_project(connection)
        job = add_running_job(connection, project, lease_seconds=10)
        renewal = leases.renew(connection, job.id, 1, 500)
        renewed = jobs.get(connection, project, job.id)
    assert renewal.pause_requested is False
    assert renewed.lease_expires_at == pytest.approx((job.lease_expires_at or 0) + 490, abs=5)


def test_a_renewal_brings_back_that_a_pause_was_asked_for(database: Database) -> None:
    with database.write() as connection:
        job = add_running_job(connection, add_project(connection))
    set_columns(database, job.id, pause_requested=True)
    with database.write() as connection:
        assert leases.renew(connection, job.id, 1, 60).pause_requested is True


@pytest.mark.parametrize(
    "change",
    [{"lease_epoch": 2}, {"status": JobStatus.CANCELLED}, {"status": JobStatus.QUEUED}],
    ids=["taken_over", "cancelled", "queued_again"],
)
def test_a_lost_lease_can_neither_be_renewed_nor_written_under(
    database: Database, change: dict[str, Any]
) -> None:
    with database.write() as connection:
        project = add_project(connection)
        job = add_running_job(connection, project)
    set_columns(database, job.id, **change)
    with database.write() as connection:
        before = jobs.get(connection, project, job.id)
        for write in (
            lambda: leases.renew(connection, job.id, 1, 60),
            lambda: leases.write(connection, job.id, 1, progress={"step": 1}),
            lambda: leases.write(connection, job.id, 1),
        ):
            with pytest.raises(LeaseLost):
                write()
        assert jobs.get(connection, project, job.id) == before


def test_an_expired_lease_is_not_renewed(database: Database) -> None:
    with database.write() as connection:
        job = add_running_job(connection, add_project(connection), lease_seconds=-1)
        with pytest.raises(LeaseLost):
            leases.renew(connection, job.id, 1, 60)


def test_a_write_under_the_lease_is_written(database: Database) -> None:
    with database.write() as connection:
        project = add_project(connection)
        job = add_running_job(connection, project)
        leases.write(connection, job.id, 1, resume_prefix="jobs/1/e1/step-2", resume_step=2)
        leases.write(connection, job.id, 1)
        written = jobs.get(connection, project, job.id)
    assert (written.resume_prefix, written.resume_step) == ("jobs/1/e1/step-2", 2)


def test_a_lease_that_is_checked_cannot_be_taken_before_the_commit(database: Database) -> None:
    """The negative control of fencing: a check that took no lock would let the move through."""
    with database.write() as connection:
        project = add_project(connection)
        job = add_running_job(connection, project, lease_seconds=-1)
    order: list[str] = []

    def take_over() -> None:
        with database.write() as connection:
            jobs.transition(connection, job.id, JobStatus.QUEUED, message="back", epoch=1)
            order.append("taken over")

    with ThreadPoolExecutor(max_workers=1) as pool:
        with database.write() as connection:
            leases.write(connection, job.id, 1)
            taken = pool.submit(take_over)
            leases.write(connection, job.id, 1, resume_step=3)
            order.append("written")
        taken.result()
    assert order == ["written", "taken over"]


def test_expired_leases_are_those_of_running_jobs_past_their_end(database: Database) -> None:
    with database.write() as connection:
        project = add_project(connection)
        add_queued_job(connection, project)
        add_running_job(connection, project)
        late = add_running_job(connection, project, lease_seconds=-1)
        expired = leases.list_expired(connection, 10)
    assert [job.id for job in expired] == [late.id]


def test_undispatched_are_queued_jobs_without_a_recent_message(database: Database) -> None:
    with database.write() as connection:
        project = add_project(connection)
        never, long_ago, just_now = (add_queued_job(connection, project) for _ in range(3))
        add_running_job(connection, project)
        leases.mark_dispatched(connection, [long_ago.id, just_now.id])
    set_columns(database, long_ago.id, dispatched_at=now() - 61)
    with database.read() as connection:
        assert set(leases.list_undispatched(connection, 60, 10)) == {never.id, long_ago.id}
        assert leases.list_undispatched(connection, 60, 1) == [never.id]
    assert just_now.dispatched_at is None


def test_moments_move_on_within_a_transaction(database: Database) -> None:
    with database.write() as connection:
        first = connection.scalar(select(now()))
        later = connection.scalar(select(now()))
        while later == first:
            later = connection.scalar(select(now()))
    assert later > first


def claim_order(database: Database) -> list[str]:
    order = []
    with database.write() as connection:
        while job := leases.claim_next(connection, "me", 60):
            order.append(job.id)
            jobs.transition(connection, job.id, JobStatus.SUCCEEDED, message="done")
    return order


def test_projects_take_turns(database: Database) -> None:
    """A project that queued a hundred jobs first does not make the others wait for all of them."""
    with database.write() as connection:
        many, few = add_project(connection, "many"), add_project(connection, "few")
        first = [add_queued_job(connection, many) for _ in range(3)]
        late = [add_queued_job(connection, few) for _ in range(2)]
    for number, job in enumerate([*first, *late]):
        set_columns(database, job.id, created_at=float(number))
    expected = [first[0], late[0], first[1], late[1], first[2]]
    assert claim_order(database) == [job.id for job in expected]


def test_the_project_with_fewer_running_jobs_comes_first(database: Database) -> None:
    with database.write() as connection:
        busy, idle = add_project(connection, "busy"), add_project(connection, "idle")
        add_running_job(connection, busy)
        older = add_queued_job(connection, busy)
        newer = add_queued_job(connection, idle)
    set_columns(database, older.id, created_at=1.0)
    assert claim_order(database) == [newer.id, older.id]


def test_a_job_under_way_comes_before_new_ones(database: Database) -> None:
    with database.write() as connection:
        project = add_project(connection)
        new = add_queued_job(connection, project)
        begun = add_queued_job(connection, project)
    set_columns(database, new.id, created_at=1.0)
    set_columns(database, begun.id, started_at=5.0)
    assert claim_order(database) == [begun.id, new.id]


def test_the_checkpoint_before_is_what_is_fallen_back_to(database: Database) -> None:
    with database.write() as connection:
        job = add_running_job(connection, add_project(connection))
        for step in (2, 4, 4, 6):
            last = leases.write_checkpoint(connection, job.id, 1, f"jobs/x/e1/step-{step}", step)
        assert (last.resume_step, last.fallback_step) == (6, 4)
        once = leases.fall_back(connection, job.id, 1)
        assert (once.resume_step, once.fallback_step) == (4, None)
        assert once.resume_prefix == "jobs/x/e1/step-4"
        twice = leases.fall_back(connection, job.id, 1)
    assert (twice.resume_prefix, twice.resume_step) == (None, None)


def test_a_graceful_end_takes_its_attempt_back(database: Database) -> None:
    with database.write() as connection:
        job = add_running_job(connection, add_project(connection))
        given = leases.give_back(
            connection,
            job.id,
            1,
            "The worker shuts down",
            level="info",
            attempts=leases.ONE_ATTEMPT_LESS,
        )
    assert (given.status, given.attempts, given.lease_epoch) == (JobStatus.QUEUED, 0, 1)
