"""`task.json` beside an adapter: which task it was trained for, and what its data decided."""

from typing import Any

import msgspec

TASK_NAME = "task.json"


class TaskFile(msgspec.Struct, frozen=True):
    """The content of the file.

    Attributes:
        task: name in `app.domain.tasks.TASKS`.
        outline: see `worker.tasks.Task.survey`.
    """

    task: str
    outline: dict[str, Any]
