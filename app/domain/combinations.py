"""Which task, method and kind of adapter go together; what does not is refused with the reason."""

from app.domain.errors import InvalidInput
from app.domain.job_spec import AdapterSpec
from app.domain.methods import METHODS
from app.domain.peft_kinds import PEFT_KINDS
from app.domain.tasks import TASKS, TEXT_GENERATION

# Tasks in which a learnt prompt is trained and served exactly.
_PROMPT_TASKS = frozenset({TEXT_GENERATION, "text-classification"})

# Why it is not in the others.
_SHIFTED = "every token has an output of its own, and learnt tokens would shift them all"
_NO_PROMPT = {
    "token-classification": _SHIFTED,
    "question-answering": _SHIFTED,
    "fill-mask": _SHIFTED,
    "feature-extraction": "the mean over all tokens would contain the learnt ones",
    "text2text-generation": "peft takes a prompt's width from a model's configuration, in which an "
    "encoder-decoder that was joined from two models has none",
    "image-classification": "an image has no tokens that a prompt could stand before",
    "automatic-speech-recognition": "sound has no tokens that a prompt could stand before",
}


def check_combination(task: str, method: str, adapter: AdapterSpec) -> None:
    """Refuse what could not be trained or served.

    Raises:
        InvalidInput: naming the field and the reason.
    """
    if not TASKS[task].kinds_for(method):
        known = ", ".join(name for name in METHODS if TASKS[task].kinds_for(name))
        raise InvalidInput(
            f"the task {task} cannot be learnt by the method {method!r}; it can by {known}",
            param="method",
        )
    if reason := refusal(task, adapter.type):
        raise InvalidInput(
            f"{adapter.type} does not fit the task {task}: {reason}", param="tunesmith.adapter.type"
        )
    _check_options(adapter)


def check_continuation(adapter: AdapterSpec, param: str = "model") -> None:
    """Refuse to start from an adapter of a kind whose training cannot be gone on with.

    Args:
        param: the field that names the adapter.

    Raises:
        InvalidInput: naming the field and the reason.
    """
    if adapter.type == "p-tuning":
        raise InvalidInput(
            "a model trained by p-tuning cannot be trained further: it keeps the embeddings that "
            "its encoder made, and not the encoder",
            param=param,
        )


def refusal(task: str, kind: str) -> str | None:
    """Return why a kind of adapter does not fit a task; None where it does."""
    if not PEFT_KINDS[kind].is_prompt or task in _PROMPT_TASKS:
        return None
    return _NO_PROMPT.get(task, "a prompt has not been made to work with it")


def _check_options(adapter: AdapterSpec) -> None:
    options = adapter.complete_options()
    if adapter.type == "adalora" and options["target_r"] >= options["init_r"]:
        raise InvalidInput(
            "'target_r' must be less than 'init_r': AdaLoRA takes ranks away",
            param="tunesmith.adapter.target_r",
        )
    if options.get("use_dora") and options.get("init") == "pissa":
        raise InvalidInput(
            "'use_dora' and the init 'pissa' exclude each other: the magnitudes of the one are of "
            "whole weights, of which the other trains a part",
            param="tunesmith.adapter.use_dora",
        )
