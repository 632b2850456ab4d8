"""Is the database there, whole, of the newest schema, and does it keep what it says it has kept?"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Connection, make_url, text

from app.db.database import SQLITE_WAL_SAFE
from app.db.migrations import current_revision, known_revisions
from app.resources import Resources
from app.services.inspection.findings import Finding, fail, ok, reason_of, size, warn

POSTGRES_MIN = (14,)

_RESTORE = (
    "Stop the service, set the database file aside with its -wal and -shm, and restore a backup."
)
_LET_WRITE = (
    "Let the user of the service write the file and its directory, where -wal and -shm lie too: "
    "see to owner, permissions and read-only mounts. Run the doctor as that user."
)
_MIGRATE = "Start the service, which brings it up to date, or run `tunesmith migrate`."


def check_database(resources: Resources) -> Iterator[Finding]:
    """Look whether the database is there and of a version that is safe to use."""
    url = make_url(resources.settings.database_url)
    shown = url.render_as_string(hide_password=True)
    path = _file_of(resources)
    if path is not None and not path.exists():
        yield fail(
            "database",
            f"there is no {path}",
            "Nothing is installed here yet: `tunesmith up` does it. If it is elsewhere, "
            "set TUNESMITH_DATA_DIR or DATABASE_URL.",
        )
        return
    refusal = None if path is None else _write_refusal(path)
    if refusal is not None:
        yield fail("database", refusal, _LET_WRITE)
        return
    try:
        with resources.database.read() as connection:
            connection.execute(text("SELECT count(*) FROM sqlite_master" if path else "SELECT 1"))
            yield _check_server(connection, shown)
    except Exception as error:  # Any driver's way of saying no.
        yield fail(
            "database",
            f"{shown} cannot be read: {reason_of(error)}",
            _RESTORE if path else "Start the database server, or correct DATABASE_URL.",
        )


def check_schema(resources: Resources) -> Iterator[Finding]:
    """Compare the schema with the newest one; it is left as it is."""
    with resources.database.read() as connection:
        current = current_revision(connection)
    known = known_revisions()
    if current is None:
        yield fail("schema", "the database holds no tables yet", _MIGRATE)
    elif current not in known:
        yield fail(
            "schema",
            f"{current} is not known here: a newer tunesmith made it",
            "Run the version of tunesmith that the service runs.",
        )
    elif current != known[0]:
        yield fail("schema", f"{current} is older than {known[0]}", _MIGRATE)
    else:
        yield ok("schema", f"{current}, the newest")


def check_integrity(resources: Resources) -> Iterator[Finding]:
    """Look for damage, and for settings that would lose what was committed."""
    try:
        with resources.database.read() as connection:
            if connection.dialect.name == "postgresql":
                yield _check_durability(connection)
                return
            # A few lines are as good as thousands.
            found = connection.execute(text("PRAGMA integrity_check(3)")).scalars().all()
    except Exception as error:  # A damaged file shows in many ways.
        yield fail("integrity", reason_of(error), _RESTORE)
        return
    if list(found) != ["ok"]:
        yield fail("integrity", "; ".join(" ".join(line.split()) for line in found), _RESTORE)
        return
    yield ok("integrity", "SQLite's integrity check finds no damage")


def check_disk(resources: Resources) -> Iterator[Finding]:
    """Look at the room on the disk of a database that is a file."""
    path = _file_of(resources)
    if path is None:
        return
    free, wanted = shutil.disk_usage(path.parent).free, resources.settings.min_free_bytes
    found = f"{size(free)} free at {path.parent}"
    if free < wanted:
        advice = f"Make room: below {size(wanted)} (MIN_FREE_BYTES) writes may soon fail."
        yield fail("database disk", found, advice)
    else:
        yield ok("database disk", found)


def _write_refusal(path: Path) -> str | None:
    """Say what keeps a file from being written, without writing to it."""
    try:
        # Closing it would drop the locks of a connection that this process already had to it.
        os.close(os.open(path, os.O_RDWR))
    except OSError as error:
        return f"{path} cannot be written: {error.strerror}"
    # SQLite follows links before it names the files beside its own.
    directory = path.resolve().parent
    if not os.access(directory, os.W_OK | os.X_OK):
        return f"{path} cannot be written: its directory {directory} takes no files"
    return None


def _check_server(connection: Connection, shown: str) -> Finding:
    dialect = connection.dialect
    if dialect.name == "postgresql":
        server = dialect.server_version_info or ()
        found = f"{shown} answers, Postgres {'.'.join(str(number) for number in server)}"
        if server < POSTGRES_MIN:
            return fail("database", found, "Upgrade the server to Postgres 14 or newer.")
        return ok("database", found)
    assert dialect.dbapi is not None
    build: tuple[int, ...] = dialect.dbapi.sqlite_version_info
    journal = connection.execute(text("PRAGMA journal_mode")).scalar_one()
    found = (
        f"{shown} answers, SQLite {'.'.join(str(number) for number in build)}, journal {journal}"
    )
    if build < SQLITE_WAL_SAFE:
        safe = ".".join(str(number) for number in SQLITE_WAL_SAFE)
        return warn(
            "database",
            found,
            f"Before SQLite {safe} a bug can corrupt a WAL database, so the slower journal is "
            "used: install the package pysqlite3 where it is to be had.",
        )
    return ok("database", found)


def _check_durability(connection: Connection) -> Finding:
    if connection.scalar(text("SELECT pg_is_in_recovery()")):
        advice = "Let DATABASE_URL point at the primary."
        return fail("integrity", "the server is a standby or recovers: it takes no writes", advice)
    damaged = connection.scalar(
        text("SELECT checksum_failures FROM pg_stat_database WHERE datname = current_database()")
    )
    if damaged:
        return fail(
            "integrity",
            f"the server has met {damaged} pages with a wrong checksum",
            "Suspect the disk: restore a backup to another one.",
        )
    off = [
        name
        for name in ("fsync", "full_page_writes", "synchronous_commit")
        if connection.scalar(text("SELECT current_setting(:name)"), {"name": name}) == "off"
    ]
    if off:
        return fail(
            "integrity",
            f"{', '.join(off)} = off: a power failure can take back what was committed",
            "Turn it on with ALTER SYSTEM SET … = on and SELECT pg_reload_conf().",
        )
    return ok("integrity", "no wrong checksums; commits are on the disk when they return")


def _file_of(resources: Resources) -> Path | None:
    url = make_url(resources.settings.database_url)
    is_file = url.get_backend_name() == "sqlite"
    return Path(url.database or "").absolute() if is_file else None
