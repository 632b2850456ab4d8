"""Wire types of requests for fine-tuning jobs; `method` is made from the registry of methods."""

from typing import Annotated, Any, Literal, Union

from pydantic import Field, WithJsonSchema, create_model, model_validator

from app.api.schemas.common import Metadata, PartialRequest, Request, Text
from app.domain.methods import METHODS, Auto, SupervisedHyperparameters
from app.domain.metrics import METRICS
from app.domain.peft_kinds import LORA, PEFT_KINDS, AdapterOptions
from app.domain.tasks import TASKS
from app.domain.unsupported_fields import JOB_FIELDS
from app.services.job_checks import JobRequest
from app.services.jobs import MAX_SEED

DEFAULT_METHOD = "supervised"

# As an `enum` of one: generators of clients stumble over a `const` beside an object.
Balanced = Annotated[Literal["balanced"], WithJsonSchema({"type": "string", "enum": ["balanced"]})]


def _one_of(names: tuple[str, ...]) -> Any:
    return Literal[names]


TaskName: Any = _one_of(tuple(TASKS))
MetricName: Any = _one_of(tuple(METRICS))


def _adapter_model(name: str) -> type[AdapterOptions]:
    kind = PEFT_KINDS[name]
    title = kind.options.__name__.removesuffix("Options")
    # Whoever leaves the type out means the usual one.
    tag = (Literal[name], name if name == LORA else ...)
    fields: dict[str, Any] = {"type": tag}
    return create_model(f"{title}Adapter", __base__=kind.options, __doc__=kind.summary, **fields)


def _union(models: tuple[type[Any], ...], tag: str) -> Any:
    if len(models) == 1:
        return models[0]
    return Annotated[Union[models], Field(discriminator=tag)]  # noqa: UP007 - made at run time.


Adapter: Any = _union(tuple(map(_adapter_model, PEFT_KINDS)), "type")


class EarlyStoppingOptions(Request):
    """End the run when the held-out data stop improving; the best epoch is the result."""

    patience: Annotated[
        int, Field(ge=1, le=50, description="Epochs in a row that may bring nothing.")
    ] = 1
    min_delta: Annotated[float, Field(ge=0, le=1e6)] = 0.0


class AdversarialOptions(Request):
    """Train on inputs whose embeddings were changed to hurt the most, too."""

    type: Literal["fgm", "pgd"]
    epsilon: Annotated[
        float, Field(gt=0, le=100, description="Largest change of an example, as an L2 norm.")
    ] = 1.0
    steps: Annotated[int, Field(ge=1, le=10, description="Of the attack; `pgd` only.")] = 3


class ReplayOptions(Request):
    """Mix in what the model learnt before, and report how much of it was forgotten."""

    file: Annotated[Text, Field(description="Id of a file of the earlier job.")]
    share: Annotated[
        float, Field(ge=0, le=0.9, description="Of all records; 0 only measures forgetting.")
    ] = 0.2


class AnchorOptions(Request):
    """Hold the weights near those of the model that the job starts from."""

    type: Literal["l2", "ewc"]
    strength: Annotated[float, Field(gt=0, le=1e6)] = 0.01


class TrainingOptions(Request):
    """How the run trains, beyond OpenAI's hyperparameters."""

    scheduler: Literal["linear", "cosine", "constant"] = "cosine"
    warmup_ratio: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = 1.0
    label_smoothing: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    early_stopping: EarlyStoppingOptions | None = None
    neftune_noise_alpha: Annotated[
        float,
        Field(ge=0, le=100, description="Noise on embeddings (https://arxiv.org/abs/2310.05914)."),
    ] = 0.0
    adversarial: AdversarialOptions | None = None
    class_weights: Annotated[
        Balanced | dict[Text, Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]] | None,
        Field(description="Weights of classes in the loss, by name; those not named have 1."),
    ] = None
    freeze_layers: Annotated[
        int, Field(ge=0, le=512, description="How many of the lowest layers stay as they are.")
    ] = 0
    anchor: AnchorOptions | None = None
    replay: ReplayOptions | None = None
    max_length_tokens: Annotated[
        int | None,
        Field(
            ge=16,
            description="Longer records are cut; the model's context length if absent.",
        ),
    ] = None
    base_quantization: Annotated[
        Literal["nf4", "int8"] | None,
        Field(
            description="Hold the frozen base model in 4 or 8 bits while the adapter is trained; "
            "the result is served on the base model as it is."
        ),
    ] = None
    gradient_checkpointing: Annotated[
        Auto | bool,
        Field(
            description="Compute activations again instead of keeping them. `auto`: if memory is "
            "short."
        ),
    ] = "auto"
    image_size: Annotated[
        int | None,
        Field(
            ge=32,
            le=1024,
            description="Pixels a side of the images that the model sees, here and when it is "
            "served; the base model's own if absent.",
        ),
    ] = None


class DeployIf(Request):
    """The tuned model's name is published only if it beats its base by this much."""

    metric: MetricName
    min_gain: Annotated[
        float,
        Field(ge=-1e9, le=1e9, description="In the metric's better direction."),
    ] = 0.0


class EvaluationOptions(Request):
    """How the run is judged; every job ends with a report."""

    holdout: Annotated[
        Auto | Annotated[float, Field(ge=0, le=0.5)],
        Field(
            description="Share of the training file that is judged on instead of trained on, "
            "where there is no validation file. `auto`: a tenth of 50 records or more."
        ),
    ] = "auto"
    best_metric: Annotated[
        MetricName | None,
        Field(description="Publish the checkpoint that is best by this metric, not the last."),
    ] = None
    deploy_if: DeployIf | None = None


class StartOptions(Request):
    """What the job starts from instead of the base model `model`."""

    file: Annotated[
        Text, Field(description="Id of a file uploaded for `adapter`, which was made for `model`.")
    ]


class JobExtension(Request):
    """What Tunesmith takes beyond OpenAI's fields (through the client's `extra_body`)."""

    task: Annotated[
        TaskName | None,
        Field(description="A pipeline name; known from the model and the records if absent."),
    ] = None
    adapter: Adapter | None = None
    start_from: Annotated[
        StartOptions | None,
        Field(description="An uploaded adapter, whose kind and shape the job keeps."),
    ] = None
    training: TrainingOptions = TrainingOptions()
    evaluation: EvaluationOptions = EvaluationOptions()

    @model_validator(mode="before")
    @classmethod
    def _usual_type(cls, given: Any) -> Any:
        """Whoever leaves the adapter's type out means the usual one."""
        adapter = given.get("adapter") if isinstance(given, dict) else None
        if isinstance(adapter, dict) and "type" not in adapter:
            return {**given, "adapter": {"type": LORA, **adapter}}
        return given


def _method_model(name: str) -> type[Request]:
    method = METHODS[name]
    title = name.title().replace("_", "")
    has_defaults = all(not field.is_required() for field in method.settings.model_fields.values())
    fields: dict[str, Any] = {
        "type": (Literal[name], ...),
        name: (method.settings, method.settings() if has_defaults else ...),
    }
    return create_model(f"{title}Method", __base__=Request, __doc__=method.summary, **fields)


Method: Any = _union(tuple(map(_method_model, METHODS)), "type")


class CreateFineTuningJobRequest(PartialRequest):
    """A job to train a model on a file."""

    unsupported = JOB_FIELDS

    model: Annotated[Text, Field(description="A base model, or a fine-tuned one to go on from.")]
    training_file: Annotated[Text, Field(description="Id of a file uploaded for `fine-tune`.")]
    validation_file: Text | None = None
    method: Method | None = None
    hyperparameters: Annotated[
        SupervisedHyperparameters | None,
        # Not `Field(deprecated=…)`: that warns whenever the field is read, here too.
        Field(description="Use `method` instead.", json_schema_extra={"deprecated": True}),
    ] = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    suffix: (
        Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")] | None
    ) = None
    metadata: Metadata | None = None
    tunesmith: JobExtension = JobExtension()

    @model_validator(mode="after")
    def _hyperparameters_once(self) -> "CreateFineTuningJobRequest":
        if self.hyperparameters is not None and self.method is not None:
            raise ValueError("'hyperparameters' or 'method', not both")
        return self

    def to_domain(self) -> JobRequest:
        name = self.method.type if self.method is not None else DEFAULT_METHOD
        settings: dict[str, Any] = {}
        hyperparameters = (self.hyperparameters or METHODS[name].hyperparameters()).model_dump()
        if self.method is not None:
            settings = getattr(self.method, name).model_dump()
            hyperparameters = settings.pop("hyperparameters")
        adapter, start_from = self.tunesmith.adapter, self.tunesmith.start_from
        return JobRequest(
            model=self.model,
            training_file=self.training_file,
            validation_file=self.validation_file,
            method=name,
            method_settings=settings,
            hyperparameters=hyperparameters,
            task=self.tunesmith.task,
            adapter=adapter.model_dump() if adapter else None,
            training=self.tunesmith.training.model_dump(exclude_none=True),
            evaluation=self.tunesmith.evaluation.model_dump(exclude_none=True),
            seed=self.seed,
            suffix=self.suffix,
            metadata=self.metadata,
            start_file=start_from.file if start_from else None,
        )


EXAMPLE = {
    "model": "smollm2-135m-instruct",
    "training_file": "file-Tw54b7HnDeTt6Dephfvwrjef",
    "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}},
    "suffix": "support-desk",
}
