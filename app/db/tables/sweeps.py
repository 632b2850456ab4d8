"""Searches for the best hyperparameters of a job."""

from sqlalchemy import (
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from app.db.tables.columns import json_text, metadata

# Searches for the best hyperparameters of a job.
sweeps = Table(
    "sweeps",
    metadata,
    Column("id", String, primary_key=True),
    Column("project_id", ForeignKey("projects.id"), nullable=False),
    Column("status", String, nullable=False),
    # The job as its user wrote it, and as the service reads it.
    Column("job", json_text, nullable=False),
    Column("request", json_text, nullable=False),
    Column("parameters", json_text, nullable=False),
    Column("metric", String, nullable=False),
    Column("algorithm", String, nullable=False),
    Column("pruner", String, nullable=False),
    Column("max_trials", Integer, nullable=False),
    Column("max_parallel", Integer, nullable=False),
    Column("budget", json_text),
    Column("seed", Integer, nullable=False),
    Column("suffix", String),
    Column("metadata", json_text),
    # Number of the best trial so far.
    Column("best_trial", Integer),
    Column("error", json_text),
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
    Column("parameters", json_text, nullable=False),
    Column("state", String, nullable=False),
    Column("value", Double),
    Column("reason", Text),
    # So many epochs were judged by the pruner.
    Column("judged", Integer, nullable=False, server_default="0"),
    Column("created_at", Double, nullable=False),
    Column("finished_at", Double),
    UniqueConstraint("sweep_id", "number"),
)
