"""What the wire types of all graders share."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from app.domain.storable import check_storable

# A grader is kept with its job, in a database that on Postgres cannot hold a NUL.
Text = Annotated[str, AfterValidator(check_storable)]
Template = Annotated[
    Text,
    Field(description="Text with variables: `{{item.answer}}`, `{{sample.output_text}}`."),
]

PassThreshold = Annotated[
    float,
    Field(
        allow_inf_nan=False,
        description="For evaluations, which say passed or failed; it changes no reward.",
    ),
]


class GraderWire(BaseModel):
    """A grader as it is asked for: an unknown field is refused by name, never ignored."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class NamedGrader(GraderWire):
    """What every grader has."""

    type: str
    name: Annotated[Text, Field(min_length=1, max_length=128)]
