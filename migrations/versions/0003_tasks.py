"""Tasks beside text generation, adapters beside LoRA, several files of results, reports.

Revision ID: 0003
Revises: 0002
"""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_TASK = "text-generation"

_json = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
_jobs = sa.table(
    "jobs",
    sa.column("id", sa.String()),
    sa.column("extension", _json),
    sa.column("spec", sa.Text()),
    sa.column("result_file", sa.String()),
    sa.column("result_files", _json),
)


def upgrade() -> None:
    op.add_column("jobs", sa.Column("result_files", _json, nullable=True))
    op.add_column("jobs", sa.Column("report", _json, nullable=True))
    op.add_column("adapters", sa.Column("task", sa.String(), nullable=False, server_default=_TASK))
    for row in _rows():
        extension = dict(row.extension)
        extension["adapter"] = {"type": "lora"} | extension["adapter"]
        _write(
            row.id,
            extension=extension | {"task": _TASK, "evaluation": {}, "method": {}},
            spec=_new_spec(row.spec),
            result_files=[row.result_file] if row.result_file else None,
        )
    op.drop_column("jobs", "result_file")


def downgrade() -> None:
    op.add_column("jobs", sa.Column("result_file", sa.String(), nullable=True))
    # Before this revision there was text generation by LoRA alone.
    op.execute(f"DELETE FROM adapters WHERE task <> '{_TASK}'")
    for row in _rows():
        adapter = {key: value for key, value in row.extension["adapter"].items() if key != "type"}
        _write(
            row.id,
            extension={"adapter": adapter, "training": row.extension["training"]},
            spec=_old_spec(row.spec),
            result_file=row.result_files[0] if row.result_files else None,
        )
    op.drop_column("adapters", "task")
    op.drop_column("jobs", "report")
    op.drop_column("jobs", "result_files")


def _rows() -> list[Any]:
    return list(
        op.get_bind().execute(sa.select(_jobs.c.id, _jobs.c.extension, _jobs.c.spec, *_results()))
    )


def _results() -> list[Any]:
    columns = {column["name"] for column in sa.inspect(op.get_bind()).get_columns("jobs")}
    return [
        column for column in (_jobs.c.result_file, _jobs.c.result_files) if column.name in columns
    ]


def _write(job_id: str, **values: Any) -> None:
    op.get_bind().execute(sa.update(_jobs).where(_jobs.c.id == job_id).values(**values))


def _new_spec(text: str | None) -> str | None:
    if text is None:
        return None
    spec = json.loads(text)
    return json.dumps(
        spec | {"adapter": {"type": "lora", "options": spec["adapter"]}, "task": _TASK}
    )


def _old_spec(text: str | None) -> str | None:
    if text is None:
        return None
    spec = json.loads(text)
    kept = {key: spec[key] for key in spec if key not in ("task", "method_options", "evaluation")}
    return json.dumps(kept | {"adapter": spec["adapter"]["options"]})
