"""Do jobs move on? The sweep, leases, and what waits for longer than it should."""

from collections.abc import Iterator

from app.db.repositories import statistics
from app.db.repositories.statistics import Backlog
from app.domain.job_state import JobStatus
from app.resources import Resources
from app.services.inspection.findings import Finding, age, fail, ok, warn
from app.services.inspection.vital_signs import Progress, read_progress
from app.services.jobs import PAUSE_REQUESTED
from app.services.sweeper import LOCK_TTL_SECONDS

# Longer than any of these takes on a service that is well.
DISPATCH_SECONDS = 60.0
VALIDATION_SECONDS = 600.0
PAUSE_SECONDS = 600.0
CLAIM_SECONDS = 120.0

_START = "Start the service (`tunesmith up`)"


def check_jobs(resources: Resources) -> Iterator[Finding]:
    """Look at everything that should move by itself, all in one moment."""
    with resources.database.read() as connection:
        progress = read_progress(connection)
        validating = statistics.validating(connection)
        pausing = statistics.pausing(connection, PAUSE_REQUESTED)
        without_lease = statistics.without_lease(connection)
        held = statistics.count_held(connection)
    yield _check_sweep(
        progress.sweep_age_seconds,
        resources.settings.sweep_interval_seconds,
        waiting=validating.count + progress.unclaimed.count + progress.expired_leases.count,
    )
    yield _check_leases(
        progress.expired_leases, without_lease, resources.settings.lease_ttl_seconds
    )
    yield _check_wait(
        "dispatch",
        progress.undispatched,
        DISPATCH_SECONDS,
        "queued without a message",
        f"{_START}, and see whether the broker answers; its log tells why.",
    )
    yield _check_queue(progress.unclaimed, held)
    yield _check_wait(
        "validation",
        validating,
        VALIDATION_SECONDS,
        "waiting for a check of their files",
        f"{_START}; the log of the API tells what keeps it from checking.",
    )
    yield _check_wait(
        "pauses",
        pausing,
        PAUSE_SECONDS,
        "asked to pause and still running",
        "A pause takes effect at the end of a step: see in the worker's log whether it steps.",
    )
    yield _summary(progress)


def _check_sweep(age_seconds: float | None, interval_seconds: float, waiting: int) -> Finding:
    found = "never" if age_seconds is None else f"last {age(age_seconds)} ago"
    if age_seconds is not None:
        if age_seconds <= max(LOCK_TTL_SECONDS, 2 * interval_seconds):
            return ok("sweep", found)
        found = f"{found}: the service is down"
    advice = f"{_START}: without it no job moves on."
    if waiting:
        return fail("sweep", f"{found}; jobs that wait for it: {waiting}", advice)
    return warn("sweep", found, advice)


def _check_leases(expired: Backlog, without_lease: Backlog, ttl_seconds: float) -> Finding:
    if without_lease.count:
        return fail(
            "leases",
            f"{without_lease.count} running without a lease, such as {without_lease.oldest_job}",
            "No worker holds them and no sweep brings them back: cancel them, and report this.",
        )
    if not expired.count:
        return ok("leases", "none has expired")
    found = (
        f"{expired.count} expired, {expired.oldest_job} {age(expired.oldest_seconds)} ago "
        f"(lease: {age(ttl_seconds)})"
    )
    if expired.oldest_seconds > 2 * ttl_seconds:
        return fail("leases", found, f"{_START}: its sweep queues these jobs again.")
    return ok("leases", found)


def _check_queue(unclaimed: Backlog, held: int) -> Finding:
    if not unclaimed.count:
        return ok("queue", "no job waits for a worker")
    oldest = f"{unclaimed.oldest_job} for {age(unclaimed.oldest_seconds)}"
    found = f"{unclaimed.count} queued, {oldest}"
    if unclaimed.oldest_seconds <= CLAIM_SECONDS:
        return ok("queue", found)
    if held:
        return ok("queue", f"{found}: all workers are busy, {held} running")
    return fail(
        "queue",
        f"{found}, and no job is running",
        "Start a worker (`tunesmith worker`, or all with `tunesmith up`); if one runs, its log "
        "tells why it claims nothing: storage below MIN_FREE_BYTES, perhaps.",
    )


def _check_wait(
    check: str, backlog: Backlog, limit_seconds: float, what: str, advice: str
) -> Finding:
    if not backlog.count:
        return ok(check, f"none {what}")
    found = f"{backlog.count} {what}, {backlog.oldest_job} for {age(backlog.oldest_seconds)}"
    is_late = backlog.oldest_seconds > limit_seconds
    return warn(check, found, advice) if is_late else ok(check, found)


def _summary(progress: Progress) -> Finding:
    counts = [f"{progress.jobs[status]} {status}" for status in JobStatus if progress.jobs[status]]
    return ok("jobs", ", ".join(counts) or "none yet")
