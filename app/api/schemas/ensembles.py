"""Wire types of ensembles."""

from typing import Annotated, Literal

from pydantic import Field

from app.api.schemas.common import ListObject, Metadata, Request, Response, Text
from app.db.repositories.ensembles import Ensemble
from app.domain.ensembles import MAX_MEMBERS, EnsembleMethod
from app.services.ensembles import EnsembleRequest

_Method = Annotated[
    EnsembleMethod,
    Field(
        description="`mean_probabilities`: the weighted mean of the members' probabilities, or of "
        "the numbers that they predict. `mean_adapters`: one LoRA adapter whose update is the "
        "weighted mean of the members' updates; it generates text as any adapter does."
    ),
]


class CreateEnsembleRequest(Request):
    """Which models are to answer as one."""

    models: Annotated[
        list[Annotated[Text, Field(min_length=1)]],
        Field(
            min_length=2,
            max_length=MAX_MEMBERS,
            description="Fine-tuned models or models of checkpoints. For `mean_probabilities`: of "
            "one task and the same labels, of any base models. For `mean_adapters`: LoRA adapters "
            "for text-generation, of one base model and chat template.",
        ),
    ]
    method: _Method
    weights: Annotated[
        list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] | None,
        Field(description="How much each model counts; without them all count alike."),
    ] = None
    suffix: (
        Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")] | None
    ) = None
    metadata: Metadata | None = None

    def to_domain(self) -> EnsembleRequest:
        return EnsembleRequest(
            models=self.models,
            method=self.method,
            weights=self.weights,
            suffix=self.suffix,
            metadata=self.metadata,
        )


class EnsembleMember(Response):
    """A model in an ensemble."""

    model: str
    weight: Annotated[float, Field(description="The weights of all members are 1 together.")]


class EnsembleObject(Response):
    """Several models that answer as one."""

    id: str
    object: Literal["ensemble"] = "ensemble"
    created_at: int
    model: Annotated[str, Field(description="Its name in `/v1/predictions` and `/v1/models`.")]
    method: _Method
    task: str
    members: list[EnsembleMember]
    metadata: dict[str, str] | None

    @classmethod
    def of(cls, ensemble: Ensemble) -> "EnsembleObject":
        return cls(
            id=ensemble.id,
            created_at=int(ensemble.created_at),
            model=ensemble.model,
            method=ensemble.method,
            task=ensemble.task,
            members=[
                EnsembleMember(model=one.model, weight=one.weight) for one in ensemble.members
            ],
            metadata=ensemble.metadata,
        )


class EnsembleList(Response):
    object: ListObject = "list"
    data: list[EnsembleObject]
    has_more: bool


class DeletedEnsemble(Response):
    id: str
    object: Literal["ensemble"] = "ensemble"
    deleted: Literal[True] = True


EXAMPLE_ENSEMBLE = {
    "models": [
        "ft:all-minilm-l6-v2:acme:reviews:abc123",
        "ft:all-minilm-l6-v2:acme:reviews:def456",
    ],
    "method": "mean_probabilities",
    "suffix": "reviews",
}
