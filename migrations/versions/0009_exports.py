"""Exports of fine-tuned models.

Revision ID: 0009
Revises: 0008
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_json = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    op.create_table(
        "exports",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("project_id", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("format", sa.String(), nullable=False),
        sa.Column("quantization", sa.String(), nullable=False),
        sa.Column("metadata", _json, nullable=True),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("base_model", sa.String(), nullable=False),
        sa.Column("storage_prefix", sa.String(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=True),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.Column("result_files", _json, nullable=True),
        sa.Column("verification", _json, nullable=True),
        sa.Column("error", _json, nullable=True),
        sa.Column("dispatched_at", sa.Double(), nullable=True),
        sa.Column("lease_epoch", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("lease_owner", sa.String(), nullable=True),
        sa.Column("lease_expires_at", sa.Double(), nullable=True),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_exports_job_id")),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_exports_project_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_exports")),
    )
    op.create_index(
        op.f("ix_exports_project_id_created_at_id"),
        "exports",
        ["project_id", "created_at", "id"],
    )
    op.create_index(
        op.f("ix_exports_status_lease_expires_at"), "exports", ["status", "lease_expires_at"]
    )
    op.create_index(op.f("ix_exports_storage_prefix"), "exports", ["storage_prefix"])


def downgrade() -> None:
    op.drop_index(op.f("ix_exports_storage_prefix"), table_name="exports")
    op.drop_index(op.f("ix_exports_status_lease_expires_at"), table_name="exports")
    op.drop_index(op.f("ix_exports_project_id_created_at_id"), table_name="exports")
    op.drop_table("exports")
    # Before this revision there was no such purpose. The sweep deletes their content.
    op.execute("DELETE FROM files WHERE purpose = 'export'")
