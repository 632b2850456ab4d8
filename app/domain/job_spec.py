"""The fully resolved description of one training run: no `auto`, no optional left to guess.

The API writes it when a job leaves `validating_files`; the trainer reads it and nothing else.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import msgspec

from app.domain.peft_kinds import LORA, PEFT_KINDS
from app.domain.tasks import TEXT_GENERATION

Scheduler = Literal["linear", "cosine", "constant"]
Quantization = Literal["nf4", "int8"]


@dataclass(frozen=True, slots=True)
class DatasetRef:
    """A stored dataset: where its content is and what it must hash to."""

    file_id: str
    storage_key: str
    sha256: str
    record_count: int


@dataclass(frozen=True, slots=True)
class FileRef:
    """A stored file: where its content is and what it must hash to."""

    file_id: str
    storage_key: str
    sha256: str


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """A stored adapter to start from: of a fine-tuned model, or uploaded.

    Attributes:
        model: name of the fine-tuned model.
        storage_prefix: of the directory of its adapter.
        file: the zip that was uploaded instead; see `app.domain.adapter_archive`.
    """

    model: str | None = None
    storage_prefix: str | None = None
    file: FileRef | None = None


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """Shape of a LoRA adapter (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

    Attributes:
        r: rank of the update.
        alpha: the update is scaled by `alpha / r`.
        dropout: probability of dropping an input of the update while training.
        target_modules: last names of the linear layers that get an update.
        use_rslora: scale by `alpha / sqrt(r)` instead (https://arxiv.org/abs/2312.03732).
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    use_rslora: bool = False

    @property
    def scaling(self) -> float:
        """What the product of both matrices is multiplied by."""
        return self.alpha / (self.r**0.5 if self.use_rslora else self.r)


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """What is trained of the model.

    Attributes:
        type: name in `app.domain.peft_kinds.PEFT_KINDS`.
        options: fields of that kind's wire model; those that are absent have its defaults.
    """

    type: str = LORA
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_lora(cls, lora: LoraSpec) -> "AdapterSpec":
        return cls(LORA, {**asdict(lora), "target_modules": list(lora.target_modules)})

    @classmethod
    def of_wire(cls, adapter: dict[str, Any]) -> "AdapterSpec":
        """Return the spec of a wire object: a type, and the options beside it."""
        options = dict(adapter)
        return cls(options.pop("type", LORA), options)

    def complete_options(self) -> dict[str, Any]:
        """Return every option, those that were not given with their defaults."""
        return PEFT_KINDS[self.type].options(**self.options).model_dump()

    def plain_lora(self) -> LoraSpec | None:
        """Return the shape of an adapter that the shared trunk can train; None: `peft` must."""
        if self.type != LORA:
            return None
        options = self.complete_options()
        if options["use_dora"] or options["init"] != "default" or options["lora_plus_ratio"]:
            return None
        return LoraSpec(
            r=options["r"],
            alpha=options["alpha"],
            dropout=options["dropout"],
            target_modules=tuple(options["target_modules"] or LoraSpec().target_modules),
            use_rslora=options["use_rslora"],
        )


@dataclass(frozen=True, slots=True)
class EarlyStopping:
    """When a run ends before its last epoch.

    Attributes:
        patience: validations in a row that may bring nothing; at as many the run ends.
        min_delta: what counts as an improvement must exceed it.
    """

    patience: int
    min_delta: float = 0.0


@dataclass(frozen=True, slots=True)
class Adversarial:
    """How a text model is attacked while it learns.

    Attributes:
        epsilon: the largest change of an example's embeddings, as an L2 norm.
        steps: of the attack, where it has more than one.
    """

    type: Literal["fgm", "pgd"]
    epsilon: float = 1.0
    steps: int = 3


@dataclass(frozen=True, slots=True)
class Anchor:
    """What holds the weights where the run started.

    Attributes:
        type: `l2` alike for all weights; `ewc` by how much the earlier data depend on each.
        strength: of the penalty.
    """

    type: Literal["l2", "ewc"]
    strength: float


@dataclass(frozen=True, slots=True)
class Replay:
    """Earlier data, so that they are not forgotten.

    Attributes:
        file: what the model learnt before.
        share: of the records of a pass that are taken from it.
    """

    file: DatasetRef
    share: float


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """How a run trains.

    Attributes:
        num_epochs: passes over the training file.
        batch_size: records per optimizer step.
        learning_rate: peak of the schedule.
        scheduler: shape of the decay after the warm-up, to zero unless constant.
        warmup_ratio: share of all steps over which the rate rises linearly from zero.
        weight_decay: decoupled weight decay of AdamW.
        max_grad_norm: gradients are clipped to this global norm.
        max_length_tokens: longer records are cut at the end.
        label_smoothing: share of the target that is spread over all classes.
        early_stopping: None: every epoch is run.
        neftune_noise_alpha: of the noise on the embeddings; 0 adds none.
        adversarial: None: there is no adversary.
        class_weights: of the classes in the loss, by name or `balanced`; None: all alike.
        freeze_layers: how many of the lowest layers stay as they are.
        anchor: None: the weights may go anywhere.
        replay: None: nothing is replayed.
        image_size: pixels a side of the images that the model sees; None: its own number.
        gradient_checkpointing: activations are computed again instead of kept; `auto`: where the
            memory of the machine that runs the job would not do.
        base_quantization: format of the frozen weights while the adapter is trained; None: that
            of the device.
    """

    num_epochs: int
    batch_size: int
    learning_rate: float
    max_length_tokens: int
    scheduler: Scheduler = "cosine"
    warmup_ratio: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    label_smoothing: float = 0.0
    early_stopping: EarlyStopping | None = None
    neftune_noise_alpha: float = 0.0
    adversarial: Adversarial | None = None
    class_weights: Literal["balanced"] | dict[str, float] | None = None
    freeze_layers: int = 0
    anchor: Anchor | None = None
    replay: Replay | None = None
    image_size: int | None = None
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    base_quantization: Quantization | None = None


@dataclass(frozen=True, slots=True)
class DeployCondition:
    """What the tuned model must gain over its base for its name to be published.

    Attributes:
        metric: name in `app.domain.metrics.METRICS`.
        min_gain: in the metric's better direction.
    """

    metric: str
    min_gain: float


@dataclass(frozen=True, slots=True)
class EvaluationSpec:
    """How a run is judged.

    Attributes:
        holdout: share of the training file that is kept out of training and judged on; 0 where
            there is a validation file, or nothing is to be kept out.
        best_metric: the checkpoint that is best by it is the result; None: the last one is.
        deploy_if: condition for publishing the result; None: there is none.
    """

    holdout: float = 0.0
    best_metric: str | None = None
    deploy_if: DeployCondition | None = None


@dataclass(frozen=True, slots=True)
class JobSpec:
    """Everything a trainer needs to know of a job.

    Attributes:
        base_model: id in the operator's catalogue.
        method: name in `app.domain.methods.METHODS`.
        method_options: what the method was asked for beyond the common hyperparameters, in the
            words of its wire model.
        task: name in `app.domain.tasks.TASKS`.
        start_from: adapter whose weights the run starts from; None starts from the base model.
        seed: decides initial adapter weights, record order and dropout.
    """

    job_id: str
    base_model: str
    method: str
    training_file: DatasetRef
    validation_file: DatasetRef | None
    start_from: AdapterRef | None
    seed: int
    hyperparameters: Hyperparameters
    adapter: AdapterSpec
    task: str = TEXT_GENERATION
    method_options: dict[str, Any] = field(default_factory=dict)
    evaluation: EvaluationSpec = EvaluationSpec()

    def to_json(self) -> str:
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> "JobSpec":
        return msgspec.json.decode(text, type=cls)
