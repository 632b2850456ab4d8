"""Files of requests that are answered when there is time."""

from sqlalchemy import BigInteger, Column, Double, ForeignKey, Index, Integer, String, Table

from app.db.tables.columns import json_text, metadata

# Files of requests that are answered when there is time.
batches = Table(
    "batches",
    metadata,
    Column("id", String, primary_key=True),
    Column("project_id", ForeignKey("projects.id"), nullable=False),
    Column("status", String, nullable=False),
    # What was asked for.
    Column("endpoint", String, nullable=False),
    Column("completion_window", String, nullable=False),
    Column("input_file_id", String, nullable=False),
    Column("output_expires_after_seconds", Integer),
    Column("metadata", json_text),
    # When it came to each status.
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("in_progress_at", Double),
    Column("finalizing_at", Double),
    Column("completed_at", Double),
    Column("expired_at", Double),
    Column("cancelling_at", Double),
    Column("cancelled_at", Double),
    Column("failed_at", Double),
    # What was found: the model, if all lines name the same, or what is wrong with the input.
    Column("model", String),
    Column("errors", json_text),
    Column("line_count", Integer, nullable=False, server_default="0"),
    # What is done.
    Column("completed_lines", Integer, nullable=False, server_default="0"),
    Column("failed_lines", Integer, nullable=False, server_default="0"),
    Column("input_tokens", BigInteger, nullable=False, server_default="0"),
    Column("cached_tokens", BigInteger, nullable=False, server_default="0"),
    Column("output_tokens", BigInteger, nullable=False, server_default="0"),
    Column("reasoning_tokens", BigInteger, nullable=False, server_default="0"),
    Column("output_file_id", String),
    Column("error_file_id", String),
    # The lease, as that of a job: the epoch guards every write of whoever works on it.
    Column("lease_epoch", BigInteger, nullable=False, server_default="0"),
    Column("lease_owner", String),
    Column("lease_expires_at", Double),
    Index(None, "project_id", "created_at", "id"),
    Index(None, "status", "lease_expires_at"),
    Index(None, "input_file_id"),
)

# Answers of a batch that has not ended: a line is done once a row here holds its number.
batch_chunks = Table(
    "batch_chunks",
    metadata,
    Column("batch_id", ForeignKey("batches.id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("storage_key", String, nullable=False),
    # Numbers of the lines whose answers are in it.
    Column("lines", json_text, nullable=False),
)
