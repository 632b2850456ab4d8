"""Do batches move on?"""

from collections.abc import Iterator

from app.db.repositories import batches
from app.resources import Resources
from app.services.inspection.findings import Finding, age, ok, warn

# An API process looks for batches several times a second, and a lease is renewed long before this.
FORGOTTEN_SECONDS = 120.0


def check_batches(resources: Resources) -> Iterator[Finding]:
    """Look for batches that nobody works on although nothing is in their way."""
    after_seconds = max(FORGOTTEN_SECONDS, 2 * resources.settings.lease_ttl_seconds)
    with resources.database.read() as connection:
        backlog = batches.backlog(connection)
        forgotten = batches.count_forgotten(connection, after_seconds)
    if forgotten:
        yield warn(
            "batches",
            f"{forgotten} of {backlog.batches} under way are worked on by nobody, for more than "
            f"{age(after_seconds)}",
            "Start an API process (`tunesmith up`); if one runs, its log tells why.",
        )
        return
    yield ok(
        "batches", f"{backlog.batches} under way, {backlog.requests} requests of them unanswered"
    )
