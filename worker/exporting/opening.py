"""Opening a fine-tuned model for an export, its files checked as the engine checks them."""

from pathlib import Path

from app.base_models import InstalledBaseModel
from app.domain.job_spec import JobSpec
from app.domain.tasks import TEXT_GENERATION
from app.storage.port import Storage
from worker.exporting.model import ExportedModel
from worker.exporting.task_model import TaskModel
from worker.exporting.text_model import TextModel
from worker.serving.adapters import check_fits, inspect_adapter
from worker.training.manifest import BaseModelRef

_UNKNOWN = 0  # What fits does not depend on the context length.


def open_model(base: BaseModelRef, adapter: Path, spec: JobSpec, storage: Storage) -> ExportedModel:
    """Return a model.

    Raises:
        InvalidInput: a file is missing or damaged, or the adapter is of another base model.
    """
    files = inspect_adapter(adapter)
    directory = Path(base.directory)
    check_fits(
        files, InstalledBaseModel(base.id, base.name_or_path, directory, base.revision, _UNKNOWN)
    )
    if spec.task == TEXT_GENERATION:
        return TextModel(directory, adapter, spec, storage, files.chat_template)
    assert files.task_file is not None
    return TaskModel(directory, adapter, spec, storage, files.task_file)
