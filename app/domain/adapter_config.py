"""`adapter_config.json` of `peft`, read as `tunesmith.adapter`.

An adapter can be gone on with only if it computes here what it computed where it was made. So what
a configuration sets is either an option of ours, or known to decide nothing once there are
weights, or off; anything else is refused by name.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from app.domain.datasets.faults import quoted, quoted_list, shortened, wrong_file
from app.domain.peft_kinds import PEFT_KINDS

CONFIG_NAME = "adapter_config.json"

# Kinds by `peft`'s own names of them: `prompt-tuning` is PROMPT_TUNING there.
PEFT_TYPES = {
    name.replace("-", "_").upper(): name
    for name, kind in PEFT_KINDS.items()
    if kind.peft_config is not None
}

# Options of ours by what the configuration calls them. Those with a default of `peft`'s that is
# ours too may be absent.
_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "lora": {
        "r": "r",
        "lora_alpha": "alpha",
        "lora_dropout": "dropout",
        "use_rslora": "use_rslora",
        "use_dora": "use_dora",
    },
    "adalora": {
        "init_r": "init_r",
        "target_r": "target_r",
        "lora_alpha": "alpha",
        "lora_dropout": "dropout",
    },
    "ia3": {},
    "loha": {"r": "r", "alpha": "alpha"},
    "lokr": {"r": "r", "alpha": "alpha"},
    "oft": {"oft_block_size": "block_size"},
    "vera": {"r": "r", "vera_dropout": "dropout"},
    "prompt-tuning": {"num_virtual_tokens": "num_virtual_tokens"},
    "p-tuning": {
        "num_virtual_tokens": "num_virtual_tokens",
        "encoder_hidden_size": "encoder_hidden_size",
    },
    "prefix-tuning": {"num_virtual_tokens": "num_virtual_tokens"},
}
_MAY_BE_ABSENT = frozenset({"lora_dropout", "use_rslora", "use_dora", "vera_dropout"})

# What a kind computes with beside its options, at the one value that is used here.
_FIXED: Mapping[str, Mapping[str, Any]] = {
    "lokr": {"decompose_factor": -1},
    "oft": {"use_cayley_neumann": True, "num_cayley_neumann_terms": 5},
    "vera": {"save_projection": True},
}

# What says who made it and how it began, or which layers have weights, as their names do too.
_TELLS_NOTHING = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "init_ia3_weights",
        "init_weights",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_ga_config",
        "megatron_config",
        "megatron_core",
        "modules_to_save",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "revision",
        "target_modules",
        "task_type",
    }
)
_ALSO_TELLS_NOTHING: Mapping[str, frozenset[str]] = {
    # The schedule of ranks is that of the run.
    "adalora": frozenset(
        {"r", "beta1", "beta2", "deltaT", "orth_reg_weight", "rank_pattern"}
        | {"tfinal", "tinit", "total_step"}
    ),
    "ia3": frozenset({"feedforward_modules"}),
    "oft": frozenset({"eps"}),
    "vera": frozenset({"d_initial"}),
    "prompt-tuning": frozenset(
        {"prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_kwargs"}
        | {"tokenizer_name_or_path"}
    ),
    "p-tuning": frozenset(
        {"encoder_dropout", "encoder_num_layers", "encoder_reparameterization_type"}
    ),
    "prefix-tuning": frozenset({"encoder_hidden_size"}),
}
_OF_PROMPTS = frozenset(
    {"num_attention_heads", "num_layers", "num_transformer_submodules", "token_dim"}
)
_OFF: tuple[Any, ...] = (None, False, "", "none", [], {})

# Ways to begin that leave the base model's weights alone; others have changed them.
_HARMLESS_BEGINNINGS = (None, True, False, "gaussian", "eva", "orthogonal")


def kind_of(config: Mapping[str, Any]) -> str:
    """Return the name in PEFT_KINDS. Raises: InvalidFile."""
    peft_type = config.get("peft_type")
    if not isinstance(peft_type, str) or peft_type not in PEFT_TYPES:
        raise wrong_file(
            f"{CONFIG_NAME}: the peft_type {quoted(str(peft_type))} cannot be trained here; "
            f"expected one of {', '.join(PEFT_TYPES)}"
        )
    return PEFT_TYPES[peft_type]


def base_model_of(config: Mapping[str, Any]) -> str:
    """Return the name of the base model; empty if there is none. Raises: InvalidFile."""
    name = config.get("base_model_name_or_path")
    if name is None:
        return ""
    if not isinstance(name, str) or len(name) > 512 or "\x00" in name or not _is_text(name):
        raise wrong_file(f"{CONFIG_NAME}: base_model_name_or_path must be the name of a model")
    return name


def saved_modules_of(config: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of modules that are saved whole. Raises: InvalidFile."""
    return frozenset(_names(config, "modules_to_save"))


def check_config(config: Mapping[str, Any], kind: str) -> None:
    """Refuse settings with which an adapter cannot be gone on with. Raises: InvalidFile."""
    if _has_targets(kind):
        _names(config, "target_modules")
    for field in _OPTIONS[kind]:
        if config.get(field) is None and field not in _MAY_BE_ABSENT:
            raise wrong_file(f"{CONFIG_NAME}: {field!r} is missing")
    _refuse_unknown(config, kind)


def adapter_of(
    config: Mapping[str, Any], kind: str, target_modules: Iterable[str]
) -> dict[str, Any]:
    """Return the adapter as a job's `tunesmith.adapter` has it.

    Args:
        target_modules: last names of the layers that the weights are of; empty for a prompt.

    Raises:
        InvalidFile: an option is out of bounds; the field is named.
    """
    options = PEFT_KINDS[kind].options
    wire: dict[str, Any] = {}
    for field, option in _OPTIONS[kind].items():
        value = config.get(field)
        if value is not None:
            # Some tools write 16.0 for 16.
            is_whole = isinstance(value, float) and value.is_integer()
            wire[option] = int(value) if is_whole and option != "dropout" else value
    if _has_targets(kind):
        wire["target_modules"] = sorted(set(target_modules))
    try:
        options.model_validate(wire)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        theirs = {ours: name for name, ours in _OPTIONS[kind].items()}.get(field, field)
        raise wrong_file(f"{CONFIG_NAME}: {theirs}: {first['msg']}") from None
    return {"type": kind, **wire}


def _has_targets(kind: str) -> bool:
    return "target_modules" in PEFT_KINDS[kind].options.model_fields


def _refuse_unknown(config: Mapping[str, Any], kind: str) -> None:
    fixed = _FIXED.get(kind, {})
    for field, value in fixed.items():
        if config.get(field) != value:
            raise wrong_file(f"{CONFIG_NAME}: {field} must be {value} for it to be trained further")
    if config.get("init_lora_weights") not in _HARMLESS_BEGINNINGS:
        beginning = quoted(str(config["init_lora_weights"]))
        raise wrong_file(
            f"{CONFIG_NAME}: init_lora_weights is {beginning}, which changed weights of the base "
            "model: convert it to an ordinary LoRA first (peft's save_pretrained takes "
            "path_initial_model_for_weight_conversion)"
        )
    known = (
        _TELLS_NOTHING
        | _OPTIONS[kind].keys()
        | fixed.keys()
        | {"init_lora_weights"}
        | _ALSO_TELLS_NOTHING.get(kind, frozenset())
        | (_OF_PROMPTS if PEFT_KINDS[kind].is_prompt else frozenset())
    )
    unknown = sorted(
        field for field, value in config.items() if field not in known and value not in _OFF
    )
    if unknown:
        raise wrong_file(
            f"{CONFIG_NAME} sets {quoted_list(unknown)}, with which a {kind} adapter cannot be "
            "trained further here"
        )


def _names(config: Mapping[str, Any], field: str) -> list[str]:
    names = config.get(field)
    if names is None and field == "modules_to_save":
        return []
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise wrong_file(
            f"{CONFIG_NAME}: {field} must be a list of names, not "
            f"{shortened(quoted(str(names)), 60)}"
        )
    return names


def _is_text(value: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in value)
