"""What the service keeps about itself."""

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
)

from app.db.tables.columns import metadata

# The answers to POSTs that must not take effect twice.
idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("project_id", ForeignKey("projects.id"), primary_key=True),
    Column("method", String, primary_key=True),
    Column("path", String, primary_key=True),
    Column("key", String, primary_key=True),
    # SHA-256 of the request's content: the same key with another content is a mistake.
    Column("fingerprint", String(64), nullable=False),
    # Who is at work on the answer, and until when nobody else may be.
    Column("owner", String, nullable=False),
    Column("locked_until", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    # The answer; NULL while there is none.
    Column("status", Integer),
    Column("content_type", String),
    Column("body", LargeBinary),
    Index(None, "expires_at"),
)

# What has happened since the installation began, for operators.
counters = Table(
    "counters",
    metadata,
    Column("name", String, primary_key=True),
    Column("value", BigInteger, nullable=False),
)

# One row for each thing that only one process may do at a time, such as the sweep.
locks = Table(
    "locks",
    metadata,
    Column("name", String, primary_key=True),
    Column("owner", String, nullable=False),
    Column("expires_at", Double, nullable=False),
)
