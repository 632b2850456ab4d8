"""Idempotency keys, counters, and what resuming and sweeping need to know of a job.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Not in a batch: that would copy the table of jobs and drop the one that events refer to.
    op.add_column("jobs", sa.Column("fallback_prefix", sa.String(), nullable=True))
    op.add_column("jobs", sa.Column("fallback_step", sa.Integer(), nullable=True))
    op.add_column("jobs", sa.Column("storage_swept_at", sa.Double(), nullable=True))
    op.add_column("projects", sa.Column("served_at", sa.Double(), nullable=True))
    op.create_table(
        "idempotency_keys",
        sa.Column("project_id", sa.String(), nullable=False),
        sa.Column("method", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("locked_until", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("content_type", sa.String(), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_idempotency_keys_project_id")
        ),
        sa.PrimaryKeyConstraint(
            "project_id", "method", "path", "key", name=op.f("pk_idempotency_keys")
        ),
    )
    op.create_index(op.f("ix_idempotency_keys_expires_at"), "idempotency_keys", ["expires_at"])
    op.create_table(
        "counters",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_counters")),
    )


def downgrade() -> None:
    # Before this revision nobody could resume a job.
    op.execute(
        "UPDATE jobs SET status = CASE WHEN spec IS NULL THEN 'validating_files' ELSE 'queued' END "
        "WHERE status = 'paused'"
    )
    op.drop_table("counters")
    op.drop_index(op.f("ix_idempotency_keys_expires_at"), table_name="idempotency_keys")
    op.drop_table("idempotency_keys")
    op.drop_column("projects", "served_at")
    for column in ("storage_swept_at", "fallback_step", "fallback_prefix"):
        op.drop_column("jobs", column)
