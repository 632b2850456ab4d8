"""Every table. Moments are float seconds since 1970, by the database's clock; JSON columns hold
what only whole values are read from."""

from app.db.tables.accounts import api_keys, organizations, projects
from app.db.tables.aliases import (
    alias_answers,
    alias_feedback,
    alias_revisions,
    aliases,
    model_traffic,
    shadow_samples,
)
from app.db.tables.batches import batch_chunks, batches
from app.db.tables.columns import metadata
from app.db.tables.ensembles import ensemble_members, ensembles
from app.db.tables.exports import exports
from app.db.tables.jobs import adapters, checkpoints, events, files, jobs
from app.db.tables.service import counters, idempotency_keys, locks
from app.db.tables.sweeps import sweep_trials, sweeps

__all__ = [
    "adapters",
    "alias_answers",
    "alias_feedback",
    "alias_revisions",
    "aliases",
    "api_keys",
    "batch_chunks",
    "batches",
    "checkpoints",
    "counters",
    "ensemble_members",
    "ensembles",
    "events",
    "exports",
    "files",
    "idempotency_keys",
    "jobs",
    "locks",
    "metadata",
    "model_traffic",
    "organizations",
    "projects",
    "shadow_samples",
    "sweep_trials",
    "sweeps",
]
