"""What a job starts from beside a base model: a fine-tuned model, or an uploaded adapter."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from app.base_models import BaseModel
from app.db.repositories import files, jobs
from app.db.repositories.adapters import Adapter
from app.domain.adapter_archive import TASK_NAME, AdapterSummary
from app.domain.errors import InvalidInput, NotFound
from app.domain.job_spec import AdapterRef, FileRef
from app.domain.peft_kinds import LORA
from app.domain.tasks import TEXT_GENERATION
from app.services.files import ADAPTER
from app.services.models import Model

START_FILE = "tunesmith.start_from.file"


@dataclass(frozen=True, slots=True)
class Start:
    """An adapter whose weights a job starts from.

    Attributes:
        name: of the fine-tuned model, or the id of the uploaded file.
        param: the field that names it.
        ref: where it is stored.
        adapter: its kind and shape, as `tunesmith.adapter`.
        task: that it was trained for; None: it does not say.
    """

    name: str
    param: str
    ref: AdapterRef
    adapter: dict[str, Any]
    task: str | None

    def check_task(self, task: str) -> None:
        """Raises: InvalidInput, if it cannot be for a task."""
        if self.task is None and task != TEXT_GENERATION:
            raise InvalidInput(
                f"the adapter {self.name} cannot start a job for {task}: its zip has no "
                f"{TASK_NAME}, which says what the outputs of its head stand for",
                param=self.param,
            )


def find_start(
    connection: Connection,
    project_id: str,
    model: Model,
    *,
    file_id: str | None,
    has_adapter: bool,
) -> Start | None:
    """Return what a job starts from; None: the base model.

    Args:
        model: of the job.
        file_id: of the uploaded adapter that was asked for.
        has_adapter: the job was asked for with a shape of its own, too.

    Raises:
        InvalidInput: there is no such file, or it does not go with the rest; naming the field.
    """
    if file_id is not None:
        start = _uploaded(connection, project_id, model, file_id)
    elif model.adapter is not None:
        start = _fine_tuned(connection, model.adapter)
    else:
        return None
    if has_adapter:
        raise InvalidInput(
            f"a job that starts from {start.name!r} keeps the shape of its adapter; "
            "leave tunesmith.adapter out",
            param="tunesmith.adapter",
        )
    return start


def _fine_tuned(connection: Connection, adapter: Adapter) -> Start:
    parent = jobs.find(connection, adapter.job_id)
    return Start(
        name=adapter.name,
        param="model",
        ref=AdapterRef(adapter.name, adapter.storage_prefix),
        adapter=dict(parent.extension["adapter"]) if parent else {"type": LORA},
        task=adapter.task,
    )


def _uploaded(connection: Connection, project_id: str, model: Model, file_id: str) -> Start:
    if model.adapter is not None:
        raise InvalidInput(
            f"a job starts from one adapter, and {model.adapter.name!r} has one; give its base "
            f"model {model.base.id!r} as the model, or leave tunesmith.start_from out",
            param="tunesmith.start_from",
        )
    try:
        file = files.get(connection, project_id, file_id)
    except NotFound as error:
        raise InvalidInput(error.message, param=START_FILE, code="file_not_found") from None
    if file.purpose != ADAPTER or file.adapter is None:
        raise InvalidInput(
            f"{START_FILE} {file_id} has purpose {file.purpose!r}; expected {ADAPTER!r}",
            param=START_FILE,
        )
    summary = AdapterSummary(**file.adapter)
    _check_base(summary, model.base, file_id)
    return Start(
        name=file_id,
        param=START_FILE,
        ref=AdapterRef(file=FileRef(file.id, file.storage_key, file.sha256)),
        adapter=summary.adapter,
        task=summary.task,
    )


def _check_base(summary: AdapterSummary, base: BaseModel, file_id: str) -> None:
    # Weights of another model of the same shape would load, and mean nothing.
    if summary.base_model not in ("", base.name, base.id):
        raise InvalidInput(
            f"the adapter {file_id} was made for the base model {summary.base_model!r} "
            f"(base_model_name_or_path); the model of this job, {base.id!r}, is {base.name!r}",
            param=START_FILE,
        )
