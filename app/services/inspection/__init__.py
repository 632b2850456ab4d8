"""Looking an installation over, whether it runs or not. Nothing is changed, made or migrated."""

from collections.abc import Generator, Iterator

from app.resources import Resources
from app.services.inspection.batches import check_batches
from app.services.inspection.content import check_content, check_orphans
from app.services.inspection.database import (
    check_database,
    check_disk,
    check_integrity,
    check_schema,
)
from app.services.inspection.findings import Finding, State, fail, reason_of, warn
from app.services.inspection.jobs import check_jobs
from app.services.inspection.software import check_packages, check_versions
from app.services.inspection.surroundings import (
    check_base_models,
    check_broker_answers,
    check_engines,
    check_storage,
)

__all__ = ["Finding", "State", "inspect"]


def inspect(resources: Resources) -> Iterator[Finding]:
    """Yield what every check finds, in the order in which one would look.

    Args:
        resources: read-only ones; others would make a database that is not there.
    """
    yield from _run("versions", check_versions())
    yield from _run("packages", check_packages())
    has_tables = False
    if (yield from _run("database", check_database(resources))):
        has_tables = yield from _run("schema", check_schema(resources))
        yield from _run("integrity", check_integrity(resources))
        yield from _run("database disk", check_disk(resources))
    yield from _run("broker", check_broker_answers(resources))
    yield from _run("storage", check_storage(resources))
    if has_tables:
        yield from _run("jobs", check_jobs(resources))
        yield from _run("batches", check_batches(resources))
        yield from _run("content", check_content(resources))
        yield from _run("orphans", check_orphans(resources))
    else:
        yield warn("jobs", "not looked at, nor their content", "See to the database first.")
    yield from _run("base models", check_base_models(resources))
    yield from _run("engine", check_engines(resources))


def _run(check: str, findings: Iterator[Finding]) -> Generator[Finding, None, bool]:
    """Pass findings on and return whether none of them is a failure."""
    has_passed = True
    try:
        for finding in findings:
            has_passed = has_passed and finding.state is not State.FAIL
            yield finding
    except Exception as error:  # One check that cannot be made must not hide the others.
        advice = "See to what failed above; if nothing did, report this."
        yield fail(check, f"cannot be looked at: {reason_of(error)}", advice)
        return False
    return has_passed
