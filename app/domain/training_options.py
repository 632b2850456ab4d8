"""Which ways of training go with which task; what does not is refused with the reason."""

from collections.abc import Mapping
from typing import Any

from app.domain.errors import InvalidInput
from app.domain.tasks import TASKS, TEXT_GENERATION

FEATURE_EXTRACTION = "feature-extraction"


def check_training_options(task: str, options: Mapping[str, Any], *, is_continued: bool) -> None:
    """Refuse what could not take effect.

    Args:
        options: fields of `tunesmith.training`.
        is_continued: the job starts from a fine-tuned model.

    Raises:
        InvalidInput: naming the field and the reason.
    """
    if options.get("class_weights") is not None and not TASKS[task].has_classes:
        raise _refused("class_weights", f"the task {task} has no classes")
    if options.get("adversarial") is not None and not _is_attackable(task):
        raise _refused("adversarial", f"it is for tasks that judge a text, which {task} does not")
    if options.get("neftune_noise_alpha") and not TASKS[task].has_text:
        raise _refused("neftune_noise_alpha", f"the input of {task} is no text")
    if options.get("label_smoothing") and task == FEATURE_EXTRACTION:
        raise _refused("label_smoothing", f"the task {task} has no labels")
    for name in ("anchor", "replay"):
        if options.get(name) is not None and not is_continued:
            raise _refused(
                name,
                "there is nothing to forget: it is for jobs that start from a fine-tuned model",
            )
    anchor = options.get("anchor")
    if anchor is not None and anchor["type"] == "ewc":
        if options.get("replay") is None:
            raise _refused("anchor", "`ewc` learns from `replay.file` what must not change")
        if task == TEXT_GENERATION:
            raise _refused("anchor", f"`ewc` is not for {task}; `l2` is")


def _is_attackable(task: str) -> bool:
    return TASKS[task].has_text and task != TEXT_GENERATION


def _refused(name: str, reason: str) -> InvalidInput:
    param = f"tunesmith.training.{name}"
    return InvalidInput(f"{param}: {reason}", param=param)
