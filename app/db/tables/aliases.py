"""Names that can be moved between versions, and what those have answered."""

from sqlalchemy import (
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
)

from app.db.tables.columns import json_text, metadata

# Names of a project's own that point at versions, which they can be moved between.
aliases = Table(
    "aliases",
    metadata,
    Column("id", String, primary_key=True),
    Column("project_id", ForeignKey("projects.id"), nullable=False),
    Column("name", String, nullable=False),
    Column("task", String, nullable=False),
    # Number of the revision that counts.
    Column("revision", Integer, nullable=False),
    Column("metadata", json_text),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("project_id", "name"),
    Index(None, "project_id", "created_at", "id"),
)

# Where an alias ever pointed: rows are added and never changed.
alias_revisions = Table(
    "alias_revisions",
    metadata,
    Column("id", String, primary_key=True),
    Column("alias_id", ForeignKey("aliases.id"), nullable=False),
    # Counted from 1, without gaps.
    Column("number", Integer, nullable=False),
    Column("targets", json_text, nullable=False),
    Column("shadow", json_text),
    # Number of the revision that a rollback went back to.
    Column("restores", Integer),
    Column("reason", Text),
    # Id of the API key that was used.
    Column("created_by", String, nullable=False),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("alias_id", "number"),
)

# What each version has answered, as a domain.traffic.Tally; written about every second.
model_traffic = Table(
    "model_traffic",
    metadata,
    Column("project_id", ForeignKey("projects.id"), primary_key=True),
    Column("model", String, primary_key=True),
    # Empty and 0 where the model was called by its own name.
    Column("alias_id", String, primary_key=True),
    Column("revision", Integer, primary_key=True, autoincrement=False),
    # Whether its answers were given, or only compared.
    Column("role", String, primary_key=True),
    Column("tally", json_text, nullable=False),
    Column("updated_at", Double, nullable=False),
    Index(None, "alias_id", "revision"),
)

# Which version gave an answer, for as long as feedback on it is taken. No foreign key: an alias may
# be deleted between its answer and this row, which is written a moment later.
alias_answers = Table(
    "alias_answers",
    metadata,
    Column("project_id", ForeignKey("projects.id"), primary_key=True),
    Column("answer_id", String, primary_key=True),
    Column("alias_id", String, nullable=False, index=True),
    Column("revision", Integer, nullable=False),
    Column("model", String, nullable=False),
    Column("created_at", Double, nullable=False, index=True),
)

alias_feedback = Table(
    "alias_feedback",
    metadata,
    Column("id", String, primary_key=True),
    Column("project_id", ForeignKey("projects.id"), nullable=False),
    Column("alias_id", ForeignKey("aliases.id"), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("model", String, nullable=False),
    Column("answer_id", String, nullable=False),
    Column("score", Double, nullable=False),
    Column("comment", Text),
    Column("metadata", json_text),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("project_id", "answer_id"),
    Index(None, "alias_id", "created_at", "id"),
)

# Requests that a shadow was asked, too. No foreign key to the alias, as above.
shadow_samples = Table(
    "shadow_samples",
    metadata,
    Column("id", String, primary_key=True),
    Column("project_id", ForeignKey("projects.id"), nullable=False),
    Column("alias_id", String, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("route", String, nullable=False),
    # What answered and what did not, and how long either took.
    Column("model", String, nullable=False),
    Column("shadow_model", String, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("shadow_seconds", Double, nullable=False),
    Column("completion_tokens", Integer, nullable=False),
    Column("shadow_completion_tokens", Integer, nullable=False),
    # How alike the answers are; NULL if the shadow gave none, or if there is no measure.
    Column("is_identical", Boolean),
    Column("similarity", Double),
    Column("error", Text),
    # The request and both answers as JSON text, which may hold what JSONB cannot; only if the alias
    # says that contents are to be kept.
    Column("contents", Text),
    Column("created_at", Double, nullable=False, index=True),
    Index(None, "alias_id", "created_at", "id"),
)
