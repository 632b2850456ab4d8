"""Fine-tuned models on their way out of the house, as files."""

from sqlalchemy import BigInteger, Column, Double, ForeignKey, Index, Integer, String, Table

from app.db.tables.columns import json_text, metadata

# Fine-tuned models on their way out of the house, as files.
exports = Table(
    "exports",
    metadata,
    Column("id", String, primary_key=True),
    Column("project_id", ForeignKey("projects.id"), nullable=False),
    Column("status", String, nullable=False),
    Column("model", String, nullable=False),
    Column("format", String, nullable=False),
    Column("quantization", String, nullable=False),
    Column("metadata", json_text),
    # The model may be gone when the export is looked at: what it was made from.
    Column("job_id", ForeignKey("jobs.id"), nullable=False),
    Column("base_model", String, nullable=False),
    Column("storage_prefix", String, nullable=False),
    # How it goes.
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("finished_at", Double),
    # Ids of files.
    Column("result_files", json_text),
    Column("verification", json_text),
    Column("error", json_text),
    # The outbox and the lease, as those of jobs.
    Column("dispatched_at", Double),
    Column("lease_epoch", BigInteger, nullable=False, server_default="0"),
    Column("lease_owner", String),
    Column("lease_expires_at", Double),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Index(None, "project_id", "created_at", "id"),
    Index(None, "status", "lease_expires_at"),
    Index(None, "storage_prefix"),
)
