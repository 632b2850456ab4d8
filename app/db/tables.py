"""Every table. Moments are float seconds since 1970, by the database's clock; JSON columns hold
what only whole values are read from."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
)
from sqlalchemy.dialects.postgresql import JSONB

# A name for each constraint, so that migrations can refer to it on every engine.
metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# An absent value is SQL's NULL, not JSON's null.
_json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
# SQLite numbers rows by itself only for a column that is exactly INTEGER.
_sequence = BigInteger().with_variant(Integer(), "sqlite")

organizations = Table(
    "organizations",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("created_at", Double, nullable=False),
)

projects = Table(
    "projects",
    metadata,
    Column("id", String, primary_key=True),
    Column("organization_id", ForeignKey("organizations.id"), nullable=False, index=True),
    Column("name", String, nullable=False),
    Column("created_at", Double, nullable=False),
    # When a job of it was last claimed: projects take turns.
    Column("served_at", Double),
    UniqueConstraint("organization_id", "name"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String, primary_key=True),
    Column("project_id", ForeignKey("projects.id"), nullable=False, index=True),
    Column("name", String, nullable=False),
    Column("secret_sha256", String(64), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("revoked_at", Double),
)

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
    Column("adapter", _json),
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
    Column("start_from", _json),
    Column("method", String, nullable=False),
    Column("hyperparameters", _json, nullable=False),
    Column("extension", _json, nullable=False),
    Column("training_file", String, nullable=False),
    Column("validation_file", String),
    Column("seed", Integer, nullable=False),
    Column("metadata", _json),
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
    Column("progress", _json),
    Column("trained_tokens", BigInteger),
    # Ids of files: the numbers of every step, the report and its pictures.
    Column("result_files", _json),
    # What the report says in short: metrics of the base and of the tuned model.
    Column("report", _json),
    Column("error", _json),
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
    Column("sequence", _sequence, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),
    Column("job_id", ForeignKey("jobs.id"), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("level", String, nullable=False),
    Column("type", String, nullable=False),
    Column("message", Text, nullable=False),
    Column("data", _json),
    Index(None, "job_id", "sequence"),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("id", String, primary_key=True),
    Column("job_id", ForeignKey("jobs.id"), nullable=False),
    Column("step", Integer, nullable=False),
    Column("model", String, nullable=False),
    Column("metrics", _json, nullable=False),
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
)

# Searches for the best hyperparameters of a job.
sweeps = Table(
    "sweeps",
    metadata,
    Column("id", String, primary_key=True),
    Column("project_id", ForeignKey("projects.id"), nullable=False),
    Column("status", String, nullable=False),
    # The job as its user wrote it, and as the service reads it.
    Column("job", _json, nullable=False),
    Column("request", _json, nullable=False),
    Column("parameters", _json, nullable=False),
    Column("metric", String, nullable=False),
    Column("algorithm", String, nullable=False),
    Column("pruner", String, nullable=False),
    Column("max_trials", Integer, nullable=False),
    Column("max_parallel", Integer, nullable=False),
    Column("budget", _json),
    Column("seed", Integer, nullable=False),
    Column("suffix", String),
    Column("metadata", _json),
    # Number of the best trial so far.
    Column("best_trial", Integer),
    Column("error", _json),
    Column("created_at", Double, nullable=False),
    Column("finished_at", Double),
    Index(None, "project_id", "created_at", "id"),
    Index(None, "status"),
)

sweep_trials = Table(
    "sweep_trials",
    metadata,
    Column("id", String, primary_key=True),
    Column("sweep_id", ForeignKey("sweeps.id"), nullable=False),
    # Counted from 0, without gaps.
    Column("number", Integer, nullable=False),
    # NULL if no job could be created from its parameters.
    Column("job_id", ForeignKey("jobs.id"), unique=True),
    Column("parameters", _json, nullable=False),
    Column("state", String, nullable=False),
    Column("value", Double),
    Column("reason", Text),
    # So many epochs were judged by the pruner.
    Column("judged", Integer, nullable=False, server_default="0"),
    Column("created_at", Double, nullable=False),
    Column("finished_at", Double),
    UniqueConstraint("sweep_id", "number"),
)

# Several models that answer as one, under a name like that of a model.
ensembles = Table(
    "ensembles",
    metadata,
    Column("id", String, primary_key=True),
    Column("project_id", ForeignKey("projects.id"), nullable=False),
    Column("model", String, nullable=False, unique=True),
    Column("method", String, nullable=False),
    Column("task", String, nullable=False),
    Column("metadata", _json),
    Column("created_at", Double, nullable=False),
    Index(None, "project_id", "created_at", "id"),
)

ensemble_members = Table(
    "ensemble_members",
    metadata,
    Column("ensemble_id", ForeignKey("ensembles.id"), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("model", ForeignKey("adapters.name"), nullable=False, index=True),
    # Those of an ensemble are 1 together.
    Column("weight", Double, nullable=False),
)

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
