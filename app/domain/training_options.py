"""Which ways of training go with which task; what does not is refused with the reason."""

from collections.abc import Mapping
from typing import Any

from app.domain.errors import InvalidInput
from app.domain.job_spec import AdapterSpec
from app.domain.peft_kinds import PEFT_KINDS
from app.domain.tasks import TASKS, TEXT_GENERATION

FEATURE_EXTRACTION = "feature-extraction"
REINFORCEMENT = "reinforcement"
# Tasks without the loss of an example by itself, or whose weights are not looked at one by one.
_WITHOUT_EWC = frozenset({TEXT_GENERATION, FEATURE_EXTRACTION})
# Methods of text generation whose loss is the likelihood of tokens.
_LIKELIHOOD_METHODS = frozenset({"supervised", "continued_pretraining"})


def check_training_options(
    task: str,
    method: str,
    adapter: AdapterSpec,
    options: Mapping[str, Any],
    *,
    is_continued: bool,
) -> None:
    """Refuse what could not take effect.

    Args:
        options: fields of `tunesmith.training`.
        is_continued: the job starts from a fine-tuned model.

    Raises:
        InvalidInput: naming the field and the reason.
    """
    given = {name: value for name, value in options.items() if value}
    for name in given:
        if reason := _reason_against(name, given, task, method, adapter, is_continued):
            param = f"tunesmith.training.{name}"
            raise InvalidInput(f"{param}: {reason}", param=param)


def _reason_against(
    name: str,
    given: Mapping[str, Any],
    task: str,
    method: str,
    adapter: AdapterSpec,
    is_continued: bool,
) -> str | None:
    """Return why an option could not take effect; None where it can."""
    is_prompt = PEFT_KINDS[adapter.type].is_prompt
    match name:
        case "class_weights" if not TASKS[task].has_classes:
            return f"the task {task} has no classes"
        case "label_smoothing" if task == FEATURE_EXTRACTION:
            return f"the task {task} has no labels"
        case "label_smoothing" if task == TEXT_GENERATION and method not in _LIKELIHOOD_METHODS:
            return f"the method {method} has no targets to be smoothed"
        case "adversarial" if not TASKS[task].has_text or task == TEXT_GENERATION:
            return f"it is for tasks that judge a text, which {task} does not"
        case "neftune_noise_alpha" if not TASKS[task].has_text:
            return f"the input of {task} is no text"
        case "neftune_noise_alpha" if method == REINFORCEMENT or is_prompt:
            what = f"the adapter {adapter.type}" if is_prompt else f"the method {method}"
            return f"it does not go with {what}"
        case "freeze_layers" if is_prompt:
            return f"{adapter.type} changes no layer at all"
        case "anchor" | "replay" if not is_continued:
            return "there is nothing to forget: it is for jobs that start from a fine-tuned model"
        case "replay" if method == REINFORCEMENT:
            return f"the method {method} learns from answers of its own"
        case "anchor" if given["anchor"]["type"] == "ewc" and "replay" not in given:
            return "`ewc` learns from `replay.file` what must not change"
        case "anchor" if given["anchor"]["type"] == "ewc" and task in _WITHOUT_EWC:
            return f"`ewc` is not for {task}; `l2` is"
    return None
