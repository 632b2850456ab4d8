"""From `tunesmith.adapter` to the configuration that `peft` knows the kind by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import peft
from torch import Tensor, nn

from app.domain.errors import InvalidInput
from app.domain.job_spec import AdapterSpec
from app.domain.peft_kinds import PEFT_KINDS
from worker.tuning.targets import factor_layers, rotation_block, target_layers

PISSA = "pissa"

# What `peft` has for this type of task does not hand on which tokens are of the question.
_FORGETFUL = "QUESTION_ANS"

# From this many steps on, AdaLoRA has time to measure which ranks matter before it takes any away.
_MIN_STEPS_TO_ALLOCATE = 4


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a configuration depends on beside its options.

    Attributes:
        model: to be adapted.
        head_modules: names of modules that are trained and saved whole.
        peft_task_type: name in `peft.TaskType`.
        total_steps: of the run.
        frozen_layers: how many of the lowest blocks stay as they are.
    """

    model: nn.Module
    head_modules: Sequence[str]
    peft_task_type: str | None
    total_steps: int
    frozen_layers: int = 0


@dataclass(frozen=True, slots=True)
class _Wish:
    """The options of an adapter, and what it is for."""

    options: dict[str, Any]
    around: Surroundings

    @property
    def targets(self) -> dict[str, nn.Module]:
        around = self.around
        return target_layers(
            around.model,
            around.head_modules,
            self.options["target_modules"],
            around.frozen_layers,
        )


def peft_config(adapter: AdapterSpec, around: Surroundings) -> peft.PeftConfig:
    """Return the configuration of an adapter.

    Raises:
        InvalidInput: the options do not fit the model.
    """
    kind = PEFT_KINDS[adapter.type]
    assert kind.peft_config is not None
    wish = _Wish(adapter.complete_options(), around)
    task_type = around.peft_task_type
    if task_type == _FORGETFUL and not kind.is_prompt:
        task_type = None
    config: peft.PeftConfig = getattr(peft, kind.peft_config)(
        task_type=task_type,
        modules_to_save=list(around.head_modules) or None,
        **_FIELDS[adapter.type](wish),
    )
    return config


def allocates_ranks(total_steps: int) -> bool:
    """Say whether a run of AdaLoRA is long enough to take ranks away."""
    return total_steps >= _MIN_STEPS_TO_ALLOCATE


def _lora(wish: _Wish) -> dict[str, Any]:
    options = wish.options
    # The update of PiSSA is what the principal components have changed by: twice the rank.
    times = 2 if options["init"] == PISSA else 1
    return {
        "r": options["r"] * times,
        "lora_alpha": options["alpha"] * times,
        "lora_dropout": options["dropout"],
        "use_rslora": options["use_rslora"],
        "use_dora": options["use_dora"],
        "target_modules": _with_magnitudes(wish) if options["use_dora"] else list(wish.targets),
    }


def _with_magnitudes(wish: _Wish) -> list[str]:
    """Return the layers that DoRA can adapt: it divides by the norms of their rows."""
    found = [
        path
        for path, layer in wish.targets.items()
        if isinstance(layer.weight, Tensor) and bool(layer.weight.flatten(1).any(dim=1).all())
    ]
    if not found:
        raise InvalidInput(
            "every layer has an output of zero weights, which DoRA cannot scale",
            param="tunesmith.adapter.use_dora",
        )
    return found


def _adalora(wish: _Wish) -> dict[str, Any]:
    options, steps = wish.options, wish.around.total_steps
    return {
        "init_r": options["init_r"],
        "target_r": options["target_r"],
        "lora_alpha": options["alpha"],
        "lora_dropout": options["dropout"],
        # As in the paper's experiments: a tenth of the run to warm up, a third with ranks fixed.
        "tinit": steps // 10,
        "tfinal": steps // 3,
        "deltaT": max(1, steps // 100),
        "total_step": steps,
        "target_modules": list(wish.targets),
    }


def _ia3(wish: _Wish) -> dict[str, Any]:
    around = wish.around
    targets, feedforward = factor_layers(
        around.model,
        around.head_modules,
        wish.options["target_modules"],
        around.frozen_layers,
    )
    return {"target_modules": targets, "feedforward_modules": feedforward}


def _low_rank_product(wish: _Wish) -> dict[str, Any]:
    options = wish.options
    return {
        "r": options["r"],
        "alpha": options["alpha"],
        "target_modules": list(wish.targets),
    }


def _oft(wish: _Wish) -> dict[str, Any]:
    targets = wish.targets
    size = rotation_block(list(targets.values()), wish.options["block_size"])
    return {"oft_block_size": size, "target_modules": list(targets)}


def _vera(wish: _Wish) -> dict[str, Any]:
    targets = wish.targets
    if not all(isinstance(layer, nn.Linear) for layer in targets.values()):
        raise InvalidInput(
            "vera adapts linear layers only; those of this base model are convolutions",
            param="tunesmith.adapter.type",
        )
    return {
        "r": wish.options["r"],
        "vera_dropout": wish.options["dropout"],
        "target_modules": list(targets),
    }


def _prompt_tuning(wish: _Wish) -> dict[str, Any]:
    _refuse_last_token(wish)
    # Words of the model's own are a better start than noise (Lester et al. 2021, section 3.2).
    return {
        "num_virtual_tokens": wish.options["num_virtual_tokens"],
        "prompt_tuning_init": "SAMPLE_VOCAB",
    }


def _refuse_last_token(wish: _Wish) -> None:
    """Decoders that classify do so at the last token, which they find by the ids of tokens."""
    around = wish.around
    if around.peft_task_type == "SEQ_CLS" and hasattr(around.model, "score"):
        raise InvalidInput(
            "this base model cannot classify behind learnt embeddings; prefix-tuning works",
            param="tunesmith.adapter.type",
        )


def _p_tuning(wish: _Wish) -> dict[str, Any]:
    _refuse_last_token(wish)
    return {
        "num_virtual_tokens": wish.options["num_virtual_tokens"],
        "encoder_hidden_size": wish.options["encoder_hidden_size"],
    }


def _prefix_tuning(wish: _Wish) -> dict[str, Any]:
    return {"num_virtual_tokens": wish.options["num_virtual_tokens"]}


# How each kind's options are called in its configuration.
_FIELDS: dict[str, Callable[[_Wish], dict[str, Any]]] = {
    "lora": _lora,
    "adalora": _adalora,
    "ia3": _ia3,
    "loha": _low_rank_product,
    "lokr": _low_rank_product,
    "oft": _oft,
    "vera": _vera,
    "prompt-tuning": _prompt_tuning,
    "p-tuning": _p_tuning,
    "prefix-tuning": _prefix_tuning,
}
