"""Wire types of aliases and their revisions."""

from typing import Annotated, Literal

from pydantic import Field

from app.api.schemas.common import ListObject, Metadata, Request, Response, Text
from app.db.repositories.aliases import Alias, Revision
from app.domain.aliases import MAX_TARGETS, NAME_PATTERN, Shadow, Target
from app.services.aliases import Change

_MAX_WEIGHT = 1_000_000
_Model = Annotated[Text, Field(min_length=1, max_length=512)]
_Reason = Annotated[
    Annotated[Text, Field(min_length=1, max_length=1_000)] | None,
    Field(description="Why, for whoever reads the revisions."),
]
_Expected = Annotated[
    Annotated[int, Field(ge=1)] | None,
    Field(
        description="The number of the revision that you have seen: if another one came since, "
        "nothing is changed."
    ),
]


class AliasTarget(Request):
    """A version, and its share of the requests."""

    model: Annotated[
        _Model, Field(description="A base model, a fine-tuned model or an ensemble; all of a task.")
    ]
    weight: Annotated[
        float,
        Field(
            ge=0,
            le=_MAX_WEIGHT,
            allow_inf_nan=False,
            description="Counts in proportion to the sum of all; with 0 it gets no request.",
        ),
    ]


class AliasShadow(Request):
    """A version that is asked, too, at low priority; nobody gets its answers."""

    model: _Model
    share: Annotated[
        float, Field(gt=0, le=1, description="Of the answered requests, those that it is sent.")
    ]
    record_contents: Annotated[
        bool,
        Field(
            description="Whether prompts and both answers are kept, to be read in "
            "`/v1/aliases/{name}/shadow_samples`. Without it only scores are."
        ),
    ] = False


class _Pointing(Request):
    targets: Annotated[list[AliasTarget], Field(min_length=1, max_length=MAX_TARGETS)]
    shadow: AliasShadow | None = None
    reason: _Reason = None
    metadata: Metadata | None = None

    def change(self, expected_revision: int | None = None) -> Change:
        asked, shadow = self.shadow, None
        if asked is not None:
            shadow = Shadow(asked.model, asked.share, asked.record_contents)
        return Change(
            targets=[Target(one.model, one.weight) for one in self.targets],
            shadow=shadow,
            reason=self.reason,
            metadata=self.metadata,
            expected_revision=expected_revision,
        )


class CreateAliasRequest(_Pointing):
    """A name of your own, and the versions that answer to it."""

    name: Annotated[
        Text,
        Field(
            pattern=NAME_PATTERN, description="What requests name in `model`; no base model's name."
        ),
    ]


class UpdateAliasRequest(_Pointing):
    """Where the alias points from now on: what is not in here is so no more."""

    expected_revision: _Expected = None


class RollBackAliasRequest(Request):
    """Which revision to go back to."""

    revision: Annotated[
        Annotated[int, Field(ge=1)] | None,
        Field(
            description="Its number. Without it: the revision before the current one, or before "
            "the one that a rollback restored."
        ),
    ] = None
    reason: _Reason = None
    expected_revision: _Expected = None


class PointedTarget(Response):
    model: str
    weight: float


class PointedShadow(Response):
    model: str
    share: float
    record_contents: bool


class AliasRevision(Response):
    """Where an alias points since some moment; it is never changed."""

    id: str
    object: Literal["alias.revision"] = "alias.revision"
    number: int
    created_at: int
    created_by: Annotated[str, Field(description="The id of the API key that was used.")]
    reason: str | None
    restores: Annotated[
        int | None, Field(description="The number of the revision that a rollback went back to.")
    ]
    targets: list[PointedTarget]
    shadow: PointedShadow | None

    @classmethod
    def of(cls, revision: Revision) -> "AliasRevision":
        shadow = None
        if (told := revision.shadow) is not None:
            shadow = PointedShadow(
                model=told.model, share=told.share, record_contents=told.records_contents
            )
        return cls(
            id=revision.id,
            number=revision.number,
            created_at=int(revision.created_at),
            created_by=revision.created_by,
            reason=revision.reason,
            restores=revision.restores,
            targets=[PointedTarget(model=t.model, weight=t.weight) for t in revision.targets],
            shadow=shadow,
        )


class AliasObject(Response):
    """A name that points at versions."""

    id: str
    object: Literal["alias"] = "alias"
    created_at: int
    name: str
    task: str
    revision: AliasRevision
    metadata: dict[str, str] | None

    @classmethod
    def of(cls, alias: Alias) -> "AliasObject":
        return cls(
            id=alias.id,
            created_at=int(alias.created_at),
            name=alias.name,
            task=alias.task,
            revision=AliasRevision.of(alias.revision),
            metadata=alias.metadata,
        )


class AliasList(Response):
    object: ListObject = "list"
    data: list[AliasObject]
    has_more: bool


class AliasRevisionList(Response):
    object: ListObject = "list"
    data: list[AliasRevision]
    has_more: bool


class DeletedAlias(Response):
    id: str
    object: Literal["alias"] = "alias"
    deleted: Literal[True] = True


EXAMPLE_ALIAS = {
    "name": "support-bot",
    "targets": [
        {"model": "ft:smollm2-135m-instruct:acme:desk:abc123", "weight": 95},
        {"model": "ft:smollm2-135m-instruct:acme:desk:def456", "weight": 5},
    ],
    "reason": "a canary of the new data",
}
EXAMPLE_UPDATE = {key: value for key, value in EXAMPLE_ALIAS.items() if key != "name"}
EXAMPLE_ROLLBACK = {"reason": "answers in the wrong language"}
