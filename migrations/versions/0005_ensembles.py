"""Ensembles and their members.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_json = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    op.create_table(
        "ensembles",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("project_id", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("method", sa.String(), nullable=False),
        sa.Column("task", sa.String(), nullable=False),
        sa.Column("metadata", _json, nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_ensembles_project_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ensembles")),
        sa.UniqueConstraint("model", name=op.f("uq_ensembles_model")),
    )
    op.create_index(
        op.f("ix_ensembles_project_id_created_at_id"),
        "ensembles",
        ["project_id", "created_at", "id"],
    )
    op.create_table(
        "ensemble_members",
        sa.Column("ensemble_id", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("weight", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["ensemble_id"], ["ensembles.id"], name=op.f("fk_ensemble_members_ensemble_id")
        ),
        sa.ForeignKeyConstraint(
            ["model"], ["adapters.name"], name=op.f("fk_ensemble_members_model")
        ),
        sa.PrimaryKeyConstraint("ensemble_id", "position", name=op.f("pk_ensemble_members")),
    )
    op.create_index(op.f("ix_ensemble_members_model"), "ensemble_members", ["model"])


def downgrade() -> None:
    op.drop_index(op.f("ix_ensemble_members_model"), table_name="ensemble_members")
    op.drop_table("ensemble_members")
    op.drop_index(op.f("ix_ensembles_project_id_created_at_id"), table_name="ensembles")
    op.drop_table("ensembles")
