"""Which ways of training go with which task; what does not is refused with the reason."""

from collections.abc import Mapping
from typing import Any

from app.domain.errors import InvalidInput
from app.domain.job_spec import AdapterSpec
from app.domain.peft_kinds import PEFT_KINDS
from app.domain.tasks import TASKS, TEXT_GENERATION

FEATURE_EXTRACTION = "feature-extraction"
IMAGE_CLASSIFICATION = "image-classification"
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


def _is_lora_plus(adapter: AdapterSpec) -> bool:
    options = {name: one for name, one in adapter.options.items() if name != "lora_plus_ratio"}
    return AdapterSpec(adapter.type, options).plain_lora() is not None


def learns_a_cache(task: str, adapter: AdapterSpec) -> bool:
    """Say whether `peft` hands a learnt prompt on as what the layers have computed before."""
    return adapter.type == "prefix-tuning" and task != TEXT_GENERATION


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
        case "base_quantization" if method == REINFORCEMENT:
            return f"the method {method} samples answers from the base model as it is served"
        case "base_quantization" if adapter.plain_lora() is None and not _is_lora_plus(adapter):
            return "it is for lora without `use_dora` and `init`: others change the weights"
        case "gradient_checkpointing" if given[name] is True and learns_a_cache(task, adapter):
            return f"the keys and values of {adapter.type} are a cache, which it would lose"
        case "image_size" if task != IMAGE_CLASSIFICATION:
            return f"the input of {task} is no image"
        case "image_size" if is_continued:
            return "a job keeps the size of the model that it starts from"
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
