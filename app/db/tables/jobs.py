"""Files, the jobs that learn from them, and what comes of a job."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
)

from app.db.tables.columns import json_text, metadata, sequence

files = Table(
    "files",
    metadata,
    Column("id", String, primary_key=True),
    Column("project_id", ForeignKey("projects.id"), nullable=False),
    Column("purpose", String, nullable=False),
    Column("filename", String, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("storage_key", String, nullable=False),
    # Of a dataset only: what kind of record it holds, and how many.
    Column("record_kind", String),
    Column("record_count", Integer),
    # Of an uploaded adapter only: what it is.
    Column("adapter", json_text),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Index(None, "project_id", "created_at", "id"),
    Index(None, "expires_at"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String, primary_key=True),
    Column("project_id", ForeignKey("projects.id"), nullable=False),
    Column("status", String, nullable=False),
    # What was asked for.
    Column("model", String, nullable=False),
    Column("base_model", String, nullable=False),
    Column("start_from", json_text),
    Column("method", String, nullable=False),
    Column("hyperparameters", json_text, nullable=False),
    Column("extension", json_text, nullable=False),
    Column("training_file", String, nullable=False),
    Column("validation_file", String),
    Column("seed", Integer, nullable=False),
    Column("metadata", json_text),
    # The name that its adapter gets; shown as fine_tuned_model once the job has succeeded.
    Column("output_model", String, nullable=False, unique=True),
    Column("priority", Integer, nullable=False, server_default="0"),
    # What it was resolved to: a JobSpec as text, written when the job leaves validating_files.
    Column("spec", Text),
    # How it goes.
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("finished_at", Double),
    Column("estimated_finish", Double),
    Column("progress", json_text),
    Column("trained_tokens", BigInteger),
    # Ids of files: the numbers of every step, the report and its pictures.
    Column("result_files", json_text),
    # What the report says in short: metrics of the base and of the tuned model.
    Column("report", json_text),
    Column("error", json_text),
    # The outbox: NULL means that no message has been sent since the job was last queued.
    Column("dispatched_at", Double),
    # The lease (docs/architecture.md): the epoch guards every write of an attempt.
    Column("lease_epoch", BigInteger, nullable=False, server_default="0"),
    Column("lease_owner", String),
    Column("lease_expires_at", Double),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("pause_requested", Boolean, nullable=False, server_default=false()),
    # The newest state that can be resumed from, and the one before it should that be damaged.
    Column("resume_prefix", String),
    Column("resume_step", Integer),
    Column("fallback_prefix", String),
    Column("fallback_step", Integer),
    # When what an ended job leaves behind in storage was deleted.
    Column("storage_swept_at", Double),
    Index(None, "project_id", "created_at", "id"),
    Index(None, "status", "lease_expires_at"),
)

events = Table(
    "events",
    metadata,
    # Order of writing: several events may share a moment.
    Column("sequence", sequence, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),
    Column("job_id", ForeignKey("jobs.id"), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("level", String, nullable=False),
    Column("type", String, nullable=False),
    Column("message", Text, nullable=False),
    Column("data", json_text),
    Index(None, "job_id", "sequence"),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("id", String, primary_key=True),
    Column("job_id", ForeignKey("jobs.id"), nullable=False),
    Column("step", Integer, nullable=False),
    Column("model", String, nullable=False),
    Column("metrics", json_text, nullable=False),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("job_id", "step"),
)

# Everything that can be called by an `ft:` name: finished adapters and those of checkpoints.
adapters = Table(
    "adapters",
    metadata,
    Column("name", String, primary_key=True),
    Column("project_id", ForeignKey("projects.id"), nullable=False),
    Column("job_id", ForeignKey("jobs.id"), nullable=False, index=True),
    Column("base_model", String, nullable=False),
    Column("task", String, nullable=False, server_default="text-generation"),
    Column("storage_prefix", String, nullable=False),
    Column("manifest_sha256", String(64), nullable=False),
    Column("step", Integer, nullable=False),
    Column("is_final", Boolean, nullable=False),
    Column("created_at", Double, nullable=False),
    Index(None, "project_id", "created_at"),
    # Every API process asks for the newest ones of all projects about every second.
    Index(None, "created_at"),
)
