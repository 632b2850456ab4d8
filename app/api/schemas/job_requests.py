"""Wire types of requests for fine-tuning jobs; `method` is made from the registry of methods."""

from typing import Annotated, Any, Literal, Union

from pydantic import Field, create_model, model_validator

from app.api.schemas.common import Metadata, Request, Text
from app.domain.job_spec import LoraSpec
from app.domain.methods import METHODS, SupervisedHyperparameters
from app.services.jobs import MAX_SEED, JobRequest

_LORA = LoraSpec()
DEFAULT_METHOD = "supervised"


class LoraAdapter(Request):
    """Shape of a LoRA adapter."""

    type: Literal["lora"] = "lora"
    r: Annotated[int, Field(ge=1, le=256, description="Rank of the update.")] = _LORA.r
    alpha: Annotated[
        int, Field(ge=1, le=1024, description="The update is scaled by alpha / r.")
    ] = _LORA.alpha
    dropout: Annotated[float, Field(ge=0, lt=1)] = _LORA.dropout
    target_modules: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.]+$")]],
        Field(min_length=1, max_length=32, description="Last names of the linear layers."),
    ] = Field(default_factory=lambda: list(_LORA.target_modules))


class TrainingOptions(Request):
    """How the run trains, beyond OpenAI's hyperparameters."""

    scheduler: Literal["linear", "cosine", "constant"] = "cosine"
    warmup_ratio: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = 1.0
    max_length_tokens: Annotated[
        int | None,
        Field(
            ge=16,
            description="Longer records are cut; the model's context length if absent.",
        ),
    ] = None


class JobExtension(Request):
    """What Tunesmith takes beyond OpenAI's fields (through the client's `extra_body`)."""

    adapter: LoraAdapter | None = None
    training: TrainingOptions = TrainingOptions()


def _method_model(name: str) -> type[Request]:
    method = METHODS[name]
    title = name.title().replace("_", "")
    settings: Any = create_model(
        f"{title}MethodSettings",
        __base__=Request,
        __doc__=f"Settings of the method `{name}`.",
        hyperparameters=(method.hyperparameters, method.hyperparameters()),
    )
    fields: dict[str, Any] = {
        "type": (Literal[name], ...),
        name: (settings, settings()),
    }
    return create_model(f"{title}Method", __base__=Request, __doc__=method.summary, **fields)


def _method_union() -> Any:
    models = tuple(_method_model(name) for name in METHODS)
    if len(models) == 1:
        return models[0]
    return Annotated[Union[models], Field(discriminator="type")]  # noqa: UP007 - made at run time.


Method: Any = _method_union()


class CreateFineTuningJobRequest(Request):
    """A job to train a model on a file."""

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
        hyperparameters = self.hyperparameters or METHODS[name].hyperparameters()
        if self.method is not None:
            hyperparameters = getattr(self.method, name).hyperparameters
        adapter = self.tunesmith.adapter
        return JobRequest(
            model=self.model,
            training_file=self.training_file,
            validation_file=self.validation_file,
            method=name,
            hyperparameters=hyperparameters.model_dump(),
            adapter=adapter.model_dump(exclude={"type"}) if adapter else None,
            training=self.tunesmith.training.model_dump(exclude_none=True),
            seed=self.seed,
            suffix=self.suffix,
            metadata=self.metadata,
        )


EXAMPLE = {
    "model": "smollm2-135m-instruct",
    "training_file": "file-Tw54b7HnDeTt6Dephfvwrjef",
    "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}},
    "suffix": "support-desk",
}
