"""Several models that answer as one."""

from sqlalchemy import Column, Double, ForeignKey, Index, Integer, String, Table

from app.db.tables.columns import json_text, metadata

# Several models that answer as one, under a name like that of a model.
ensembles = Table(
    "ensembles",
    metadata,
    Column("id", String, primary_key=True),
    Column("project_id", ForeignKey("projects.id"), nullable=False),
    Column("model", String, nullable=False, unique=True),
    Column("method", String, nullable=False),
    Column("task", String, nullable=False),
    Column("metadata", json_text),
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
