"""The newest adapters of all projects are found without reading every row.

Revision ID: 0010
Revises: 0009
"""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(op.f("ix_adapters_created_at"), "adapters", ["created_at"])


def downgrade() -> None:
    op.drop_index(op.f("ix_adapters_created_at"), table_name="adapters")
