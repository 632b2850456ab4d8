"""Aliases, what their versions answered, and what was thought of it.

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_json = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    _aliases()
    _traffic()
    _judgements()


def downgrade() -> None:
    for table in (
        "shadow_samples",
        "alias_feedback",
        "alias_answers",
        "model_traffic",
        "alias_revisions",
        "aliases",
    ):
        op.drop_table(table)


def _aliases() -> None:
    op.create_table(
        "aliases",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("project_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("task", sa.String(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("metadata", _json, nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_aliases_project_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_aliases")),
        sa.UniqueConstraint("project_id", "name", name=op.f("uq_aliases_project_id_name")),
    )
    op.create_index(
        op.f("ix_aliases_project_id_created_at_id"), "aliases", ["project_id", "created_at", "id"]
    )
    op.create_table(
        "alias_revisions",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("alias_id", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("targets", _json, nullable=False),
        sa.Column("shadow", _json, nullable=True),
        sa.Column("restores", sa.Integer(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["alias_id"], ["aliases.id"], name=op.f("fk_alias_revisions_alias_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alias_revisions")),
        sa.UniqueConstraint("alias_id", "number", name=op.f("uq_alias_revisions_alias_id_number")),
    )


def _traffic() -> None:
    op.create_table(
        "model_traffic",
        sa.Column("project_id", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("alias_id", sa.String(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("tally", _json, nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_model_traffic_project_id")
        ),
        sa.PrimaryKeyConstraint(
            "project_id", "model", "alias_id", "revision", "role", name=op.f("pk_model_traffic")
        ),
    )
    op.create_index(
        op.f("ix_model_traffic_alias_id_revision"), "model_traffic", ["alias_id", "revision"]
    )
    op.create_table(
        "alias_answers",
        sa.Column("project_id", sa.String(), nullable=False),
        sa.Column("answer_id", sa.String(), nullable=False),
        sa.Column("alias_id", sa.String(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_alias_answers_project_id")
        ),
        sa.PrimaryKeyConstraint("project_id", "answer_id", name=op.f("pk_alias_answers")),
    )
    op.create_index(op.f("ix_alias_answers_alias_id"), "alias_answers", ["alias_id"])
    op.create_index(op.f("ix_alias_answers_created_at"), "alias_answers", ["created_at"])


def _judgements() -> None:
    op.create_table(
        "alias_feedback",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("project_id", sa.String(), nullable=False),
        sa.Column("alias_id", sa.String(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("answer_id", sa.String(), nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("comment", sa.Text(), nullable=True),
        sa.Column("metadata", _json, nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["alias_id"], ["aliases.id"], name=op.f("fk_alias_feedback_alias_id")
        ),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_alias_feedback_project_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alias_feedback")),
        sa.UniqueConstraint(
            "project_id", "answer_id", name=op.f("uq_alias_feedback_project_id_answer_id")
        ),
    )
    op.create_index(
        op.f("ix_alias_feedback_alias_id_created_at_id"),
        "alias_feedback",
        ["alias_id", "created_at", "id"],
    )
    op.create_table(
        "shadow_samples",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("project_id", sa.String(), nullable=False),
        sa.Column("alias_id", sa.String(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("route", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("shadow_model", sa.String(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("shadow_seconds", sa.Double(), nullable=False),
        sa.Column("completion_tokens", sa.Integer(), nullable=False),
        sa.Column("shadow_completion_tokens", sa.Integer(), nullable=False),
        sa.Column("is_identical", sa.Boolean(), nullable=True),
        sa.Column("similarity", sa.Double(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("contents", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_shadow_samples_project_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_shadow_samples")),
    )
    op.create_index(op.f("ix_shadow_samples_created_at"), "shadow_samples", ["created_at"])
    op.create_index(
        op.f("ix_shadow_samples_alias_id_created_at_id"),
        "shadow_samples",
        ["alias_id", "created_at", "id"],
    )
