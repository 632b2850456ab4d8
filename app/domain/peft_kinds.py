"""Kinds of parameter-efficient fine-tuning: what `tunesmith.adapter` may be.

The registry from which request schema, validation and the workers' `peft` configurations derive.
Field names and defaults are those of `peft`, without the prefix of the kind.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.domain.registry import Registry

# How a fine-tuned model of text generation answers: several in one batch with the base model and
# others, or with weights of its own.
Serving = Literal["mixed", "alone"]

ModuleName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.]+$")]
TargetModules = Annotated[
    list[ModuleName] | None,
    Field(
        min_length=1,
        max_length=32,
        description="Last names of the layers that are adapted; all linear ones if absent.",
    ),
]
Rank = Annotated[int, Field(ge=1, le=256, description="Rank of the update.")]
Alpha = Annotated[int, Field(ge=1, le=1024, description="The update is scaled by alpha / r.")]
Dropout = Annotated[float, Field(ge=0, lt=1)]
VirtualTokens = Annotated[int, Field(ge=1, le=512, description="Length of the learnt prompt.")]


class AdapterOptions(BaseModel):
    """Base of the options of every kind."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class LoraOptions(AdapterOptions):
    """Low-rank updates (Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

    r: Rank = 16
    alpha: Alpha = 32
    dropout: Dropout = 0.0
    target_modules: TargetModules = None
    use_rslora: Annotated[
        bool, Field(description="Scale by alpha / sqrt(r) (https://arxiv.org/abs/2312.03732).")
    ] = False
    use_dora: Annotated[
        bool, Field(description="Learn magnitudes too (https://arxiv.org/abs/2402.09353).")
    ] = False
    init: Annotated[
        Literal["default", "pissa"],
        Field(description="`pissa`: principal components (https://arxiv.org/abs/2404.02948)."),
    ] = "default"
    lora_plus_ratio: Annotated[
        float | None,
        Field(
            ge=1, le=64, description="Rate of B over that of A (https://arxiv.org/abs/2402.12354)."
        ),
    ] = None


class AdaLoraOptions(AdapterOptions):
    """Low-rank updates whose rank moves to where it is needed (https://arxiv.org/abs/2303.10512)."""

    init_r: Rank = 12
    target_r: Rank = 8
    alpha: Alpha = 32
    dropout: Dropout = 0.0
    target_modules: TargetModules = None


class IA3Options(AdapterOptions):
    """Learnt factors on activations (https://arxiv.org/abs/2205.05638)."""

    target_modules: TargetModules = None


class LoHaOptions(AdapterOptions):
    """Hadamard products of low-rank matrices (https://arxiv.org/abs/2108.06098)."""

    r: Rank = 8
    alpha: Alpha = 8
    target_modules: TargetModules = None


class LoKrOptions(AdapterOptions):
    """Kronecker products of low-rank matrices (https://arxiv.org/abs/2309.14859)."""

    r: Rank = 8
    alpha: Alpha = 8
    target_modules: TargetModules = None


class OFTOptions(AdapterOptions):
    """Orthogonal rotations of weights (https://arxiv.org/abs/2306.07280)."""

    block_size: Annotated[
        Annotated[int, Field(ge=2, le=256)] | None,
        Field(description="Must divide the width of every layer; the largest up to 32 if absent."),
    ] = None
    target_modules: TargetModules = None


class VeraOptions(AdapterOptions):
    """Shared random matrices with learnt scales (https://arxiv.org/abs/2310.11454)."""

    r: Annotated[int, Field(ge=1, le=1024)] = 256
    dropout: Dropout = 0.0
    target_modules: TargetModules = None


class PromptTuningOptions(AdapterOptions):
    """Learnt embeddings before the input (https://arxiv.org/abs/2104.08691)."""

    num_virtual_tokens: VirtualTokens = 20


class PTuningOptions(AdapterOptions):
    """Learnt embeddings from a small encoder (https://arxiv.org/abs/2103.10385)."""

    num_virtual_tokens: VirtualTokens = 20
    encoder_hidden_size: Annotated[int, Field(ge=1, le=8192)] = 128


class PrefixTuningOptions(AdapterOptions):
    """Learnt keys and values in every layer (https://arxiv.org/abs/2101.00190)."""

    num_virtual_tokens: VirtualTokens = 20


class FullOptions(AdapterOptions):
    """Every weight is trained: for small models."""


@dataclass(frozen=True, slots=True)
class PeftKind:
    """One kind of adapter.

    Attributes:
        summary: one sentence for people.
        options: the wire model of its options.
        peft_config: name of the class in `peft`; None: all weights are trained.
        learning_rate_factor: peak rate over that of LoRA for the same base model.
        serving: how fine-tuned models of text generation answer.
        is_prompt: it learns a prompt, and no weight of the model changes.
        merges: its update can be added to the base weights.
    """

    summary: str
    options: type[AdapterOptions]
    peft_config: str | None
    learning_rate_factor: float
    serving: Serving
    is_prompt: bool = False
    merges: bool = True


LORA = "lora"
FULL = "full"

PEFT_KINDS: Registry[PeftKind] = Registry("kind of adapter")
PEFT_KINDS.add(LORA, PeftKind("Low-rank updates.", LoraOptions, "LoraConfig", 1.0, "mixed"))
PEFT_KINDS.add(
    "adalora",
    PeftKind(
        "Low-rank updates whose rank moves to where it is needed.",
        AdaLoraOptions,
        "AdaLoraConfig",
        10.0,
        "mixed",
    ),
)
PEFT_KINDS.add(
    "ia3", PeftKind("Learnt factors on activations.", IA3Options, "IA3Config", 20.0, "alone")
)
PEFT_KINDS.add(
    "loha",
    PeftKind("Hadamard products of low-rank matrices.", LoHaOptions, "LoHaConfig", 10.0, "alone"),
)
PEFT_KINDS.add(
    "lokr",
    PeftKind("Kronecker products of low-rank matrices.", LoKrOptions, "LoKrConfig", 5.0, "alone"),
)
PEFT_KINDS.add(
    "oft", PeftKind("Orthogonal rotations of weights.", OFTOptions, "OFTConfig", 0.5, "alone")
)
PEFT_KINDS.add(
    "vera",
    PeftKind(
        "Learnt scales of random matrices that all layers share.",
        VeraOptions,
        "VeraConfig",
        30.0,
        "mixed",
    ),
)
PEFT_KINDS.add(
    "prompt-tuning",
    PeftKind(
        "Learnt embeddings before the input.",
        PromptTuningOptions,
        "PromptTuningConfig",
        30.0,
        "mixed",
        is_prompt=True,
        merges=False,
    ),
)
PEFT_KINDS.add(
    "p-tuning",
    PeftKind(
        "Learnt embeddings before the input, which a small encoder makes.",
        PTuningOptions,
        "PromptEncoderConfig",
        3.0,
        "mixed",
        is_prompt=True,
        merges=False,
    ),
)
PEFT_KINDS.add(
    "prefix-tuning",
    PeftKind(
        "Learnt keys and values before the input, in every layer.",
        PrefixTuningOptions,
        "PrefixTuningConfig",
        30.0,
        "mixed",
        is_prompt=True,
        merges=False,
    ),
)
PEFT_KINDS.add(
    FULL, PeftKind("Every weight is trained.", FullOptions, None, 0.1, "alone", merges=False)
)
