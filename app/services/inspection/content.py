"""Does every row that names content have it, and does a row name all content?"""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set

from sqlalchemy import Connection

from app.db.repositories import batches, files, statistics
from app.db.repositories.statistics import ContentName
from app.domain.errors import NotFound
from app.resources import Resources
from app.services.garbage import ORPHANED_AFTER_SECONDS
from app.services.inspection.findings import Finding, fail, ok, warn
from app.services.inspection.listing import damage_of
from app.services.inspection.surroundings import absent_directory

BATCH = 500
SHOWN = 5

_Known = Callable[[Connection, Sequence[str]], set[str]]


def check_content(resources: Resources) -> Iterator[Finding]:
    """Look for names without content, or with less than was written: that is lost data."""
    names = _names(resources)
    missing = [name for name in names if not _is_there(resources, name.storage_key)]
    damaged = _damaged(resources, set(names) - set(missing))
    if missing or damaged:
        # What was deleted in the meantime lost its row first.
        still_there = set(_names(resources))
        missing = [name for name in missing if name in still_there]
        damaged = {name: damage for name, damage in damaged.items() if name in still_there}
    if missing or damaged:
        yield _loss(resources.settings.storage_url, missing, damaged)
        return
    yield ok(
        "content",
        f"all of {len(names)} rows have theirs, adapters as listed "
        "(names and sizes; digests are compared whenever one is loaded)",
    )


def check_orphans(resources: Resources) -> Iterator[Finding]:
    """Look for old content without a name: it only takes room."""
    if absent_directory(resources.settings.storage_url) is not None:
        return
    orphans = [
        *_orphans(resources, "files", files.list_known),
        *_orphans(resources, "jobs", statistics.list_known_jobs),
        *_orphans(resources, "batches", batches.list_unended),
    ]
    if not orphans:
        yield ok("orphans", "no content without a row")
        return
    yield warn(
        "orphans",
        f"without a row: {_some(orphans)}",
        "If the database was restored from an older backup, keep them: a newer one may name "
        "them. Else delete them; the sweep deletes such files by itself.",
    )


def _names(resources: Resources) -> list[ContentName]:
    with resources.database.read() as connection:
        return statistics.list_content_names(connection)


def _loss(url: str, missing: Sequence[ContentName], damaged: Mapping[ContentName, str]) -> Finding:
    found, advice = [], []
    if missing:
        found.append(
            f"gone from {url}: "
            + _some([f"{name.storage_key} of {name.owner}" for name in missing])
        )
        advice.append("See that STORAGE_URL is right and mounted; else restore it from a backup.")
    if damaged:
        found.append(
            _some(
                [
                    f"{name.storage_key} of {name.owner} is damaged: {damage}"
                    for name, damage in damaged.items()
                ]
            )
        )
        advice.append(
            "A damaged adapter is not served, and no job starts from it: restore it from a "
            "backup, or delete the model."
        )
    return fail("content", "; ".join(found), " ".join(advice))


def _damaged(resources: Resources, there: Set[ContentName]) -> dict[ContentName, str]:
    with resources.database.read() as connection:
        names = statistics.list_adapter_names(connection)
    damages = {name: _damage_of(resources, name.storage_key) for name in names if name in there}
    return {name: damage for name, damage in damages.items() if damage is not None}


def _damage_of(resources: Resources, key: str) -> str | None:
    try:
        directory = resources.storage.directory(key)
    except NotFound:
        return "it is not a directory"
    return damage_of(directory)


def _is_there(resources: Resources, key: str) -> bool:
    if absent_directory(resources.settings.storage_url) is not None:
        return False
    return resources.storage.age_seconds(key) is not None


def _orphans(resources: Resources, prefix: str, known: _Known) -> Iterator[str]:
    names = resources.storage.list(prefix)
    for start in range(0, len(names), BATCH):
        batch = names[start : start + BATCH]
        with resources.database.read() as connection:
            with_row = known(connection, batch)
        for name in batch:
            # Content comes before its row: what is young may still get one.
            if name not in with_row and _is_old(resources, f"{prefix}/{name}"):
                yield f"{prefix}/{name}"


def _is_old(resources: Resources, key: str) -> bool:
    age_seconds = resources.storage.age_seconds(key)
    return age_seconds is not None and age_seconds > ORPHANED_AFTER_SECONDS


def _some(items: Sequence[str]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more
