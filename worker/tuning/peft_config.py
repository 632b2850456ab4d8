"""From `tunesmith.adapter` to the configuration that `peft` knows the kind by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import peft
from torch import nn

from app.domain.errors import InvalidInput
from app.domain.job_spec import AdapterSpec
from app.domain.peft_kinds import PEFT_KINDS


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a configuration depends on beside its options.

    Attributes:
        model: to be adapted.
        head_modules: names of modules that are trained and saved whole.
        peft_task_type: name in `peft.TaskType`.
        total_steps: of the run.
    """

    model: nn.Module
    head_modules: Sequence[str]
    peft_task_type: str | None
    total_steps: int


def peft_config(adapter: AdapterSpec, around: Surroundings) -> peft.PeftConfig:
    """Return the configuration of an adapter.

    Raises:
        InvalidInput: the model has no layer of a target's name.
    """
    kind = PEFT_KINDS[adapter.type]
    assert kind.peft_config is not None
    config_class = getattr(peft, kind.peft_config)
    options = adapter.complete_options()
    targets = options.pop("target_modules", None)
    fields = _FIELDS[adapter.type](options, around)
    fields["task_type"] = around.peft_task_type
    if not kind.is_prompt:
        fields["target_modules"] = _targets(targets, around)
    fields["modules_to_save"] = list(around.head_modules) or None
    config: peft.PeftConfig = config_class(**fields)
    return config


def _targets(asked: Sequence[str] | None, around: Surroundings) -> list[str]:
    """Return the full names of the layers to adapt: never those of the head.

    Without a wish, all linear layers; of a model that has none, its 1x1 convolutions.
    """
    own = {
        path: module
        for path, module in around.model.named_modules()
        if not any(path == head or path.startswith(head + ".") for head in around.head_modules)
    }
    if asked is not None:
        known = {path.rpartition(".")[2] for path in own}
        if missing := sorted(set(asked) - known):
            raise InvalidInput(
                f"the base model has no layer named {', '.join(missing)}",
                param="tunesmith.adapter.target_modules",
            )
        return [path for path in own if path.rpartition(".")[2] in asked]
    output = getattr(around.model, "get_output_embeddings", lambda: None)()
    linear = [
        path
        for path, module in own.items()
        if isinstance(module, nn.Linear) and module is not output
    ]
    found = linear or [path for path, module in own.items() if _is_pointwise(module)]
    if not found:
        raise InvalidInput("the base model has no layer that an adapter could change")
    return found


def _is_pointwise(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d):
        return False
    return module.kernel_size == (1, 1) and module.groups == 1


def _lora(options: dict[str, Any], around: Surroundings) -> dict[str, Any]:
    return {
        "r": options["r"],
        "lora_alpha": options["alpha"],
        "lora_dropout": options["dropout"],
        "use_rslora": options["use_rslora"],
        "use_dora": options["use_dora"],
        "init_lora_weights": True if options["init"] == "default" else options["init"],
    }


# How each kind's options are called in its configuration.
_FIELDS: dict[str, Callable[[dict[str, Any], Surroundings], dict[str, Any]]] = {"lora": _lora}
