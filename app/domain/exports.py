"""Exports: the formats in which a fine-tuned model leaves the house, and the life of an export.

The registry from which the request schema, what is refused, and the workers' code derive.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from app.domain.errors import InvalidInput
from app.domain.job_spec import AdapterSpec
from app.domain.peft_kinds import FULL, PEFT_KINDS
from app.domain.registry import Registry
from app.domain.tasks import TEXT_GENERATION


class ExportStatus(StrEnum):
    """States of an export. Terminal: succeeded, failed, cancelled."""

    QUEUED = "queued"  # Waiting for a worker to claim it.
    RUNNING = "running"  # Claimed: exactly one worker holds the lease.
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


_S = ExportStatus

TRANSITIONS: Mapping[ExportStatus, frozenset[ExportStatus]] = {
    _S.QUEUED: frozenset({_S.RUNNING, _S.CANCELLED}),
    # Back to queued: the lease expired, or whoever worked on it was ended.
    _S.RUNNING: frozenset({_S.SUCCEEDED, _S.FAILED, _S.CANCELLED, _S.QUEUED}),
    _S.SUCCEEDED: frozenset(),
    _S.FAILED: frozenset(),
    _S.CANCELLED: frozenset(),
}

TERMINAL: frozenset[ExportStatus] = frozenset(s for s, to in TRANSITIONS.items() if not to)


@dataclass(frozen=True, slots=True)
class Limit:
    """How far what an export computes may lie from what the fine-tuned model computes.

    Attributes:
        max_abs_logit_difference: over every number compared; None: it is measured only.
        relative_difference: norm of the difference over that of the numbers.
        mean_kl: mean divergence of the distributions, in nats; models without any have none.
    """

    max_abs_logit_difference: float | None
    relative_difference: float
    mean_kl: float


# Sums in another order, in float32.
EXACT = Limit(0.01, 1e-3, 1e-5)
_HALF = Limit(None, 0.01, 0.002)
_BRAIN = Limit(None, 0.05, 0.02)


@dataclass(frozen=True, slots=True)
class ExportFormat:
    """One format.

    Attributes:
        summary: one sentence for people.
        implementation: dotted path of the class in the worker.
        limits: by quantization; the first one is what is made if none is named.
        merges: the update is added to the weights of the base model.
        tasks: that it is for; None: all.
        kinds: of adapter that it is for; None: all.
    """

    summary: str
    implementation: str
    limits: Mapping[str, Limit]
    merges: bool = False
    tasks: frozenset[str] | None = None
    kinds: frozenset[str] | None = None


EXPORT_FORMATS: Registry[ExportFormat] = Registry("format of an export")
EXPORT_FORMATS.add(
    "adapter",
    ExportFormat(
        summary="What training wrote, as `peft` reads it: a tar.gz.",
        implementation="worker.exporting.adapter:AdapterFormat",
        limits={"float32": EXACT},
    ),
)
EXPORT_FORMATS.add(
    "merged",
    ExportFormat(
        summary="A whole model as `transformers` reads it, the update merged into it: a tar.",
        implementation="worker.exporting.merged:MergedFormat",
        limits={
            "float32": EXACT,
            "bfloat16": _BRAIN,
            "float16": _HALF,
            "int8": Limit(None, 0.1, 0.1),
            "nf4": Limit(None, 0.5, 1.0),
        },
        merges=True,
    ),
)

# llama.cpp computes with keys and values in float16, whatever the weights are.
_LLAMA_CPP = Limit(0.1, 1e-3, 1e-5)
_GGUF_LIMITS = {
    "f16": _HALF,
    "bf16": _BRAIN,
    "f32": _LLAMA_CPP,
    "q8_0": Limit(None, 0.05, 0.02),
    "q5_1": Limit(None, 0.3, 0.5),
    "q5_0": Limit(None, 0.3, 0.5),
    "q4_1": Limit(None, 0.5, 1.0),
    "q4_0": Limit(None, 0.5, 1.0),
}
EXPORT_FORMATS.add(
    "gguf",
    ExportFormat(
        summary="A whole model for llama.cpp and what is built on it, the update merged into it.",
        implementation="worker.exporting.gguf_model:GGUFFormat",
        limits=_GGUF_LIMITS,
        merges=True,
        tasks=frozenset({TEXT_GENERATION}),
    ),
)
EXPORT_FORMATS.add(
    "gguf_adapter",
    ExportFormat(
        summary="A LoRA adapter for llama.cpp, to be loaded beside its base model.",
        implementation="worker.exporting.gguf_adapter:GGUFAdapterFormat",
        limits={"f32": _LLAMA_CPP, "f16": _HALF},
        tasks=frozenset({TEXT_GENERATION}),
        kinds=frozenset({"lora", "adalora", "vera"}),
    ),
)


def choose_quantization(name: str, wanted: str | None) -> str:
    """Return the quantization of an export. Raises: InvalidInput, naming those that there are."""
    limits = EXPORT_FORMATS[name].limits
    if wanted is None:
        return next(iter(limits))
    if wanted not in limits:
        raise InvalidInput(
            f"quantization {wanted!r} is not offered for the format {name!r}; expected "
            f"{', '.join(limits)}",
            param="quantization",
        )
    return wanted


def check_format(name: str, task: str, adapter: AdapterSpec) -> None:
    """Refuse what a model cannot be exported as. Raises: InvalidInput, with the reason."""
    chosen = EXPORT_FORMATS[name]
    if chosen.tasks is not None and task not in chosen.tasks:
        raise InvalidInput(
            f"the format {name!r} is for {', '.join(sorted(chosen.tasks))}; this model is for "
            f"{task}",
            param="format",
        )
    kind = PEFT_KINDS[adapter.type]
    if chosen.merges and not kind.merges and adapter.type != FULL:
        raise InvalidInput(
            f"the format {name!r} needs an update that can be added to weights; this model has a "
            f"{adapter.type} adapter, which stands before the input and changes no weight: "
            "export it as 'adapter'",
            param="format",
        )
    if chosen.kinds is None:
        return
    if adapter.type not in chosen.kinds or adapter.options.get("use_dora"):
        own = f"{adapter.type} with use_dora" if adapter.options.get("use_dora") else adapter.type
        raise InvalidInput(
            f"the format {name!r} holds low-rank updates alone: {', '.join(sorted(chosen.kinds))}, "
            f"without use_dora; this model was tuned by {own}: export it as 'gguf'",
            param="format",
        )
