"""Files that are adapters to start from.

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_json = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    op.add_column("files", sa.Column("adapter", _json, nullable=True))


def downgrade() -> None:
    # Before this revision there was no such purpose. The sweep deletes their content.
    op.execute("DELETE FROM files WHERE purpose = 'adapter'")
    op.drop_column("files", "adapter")
