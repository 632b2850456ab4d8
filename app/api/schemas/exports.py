"""Wire types of exports."""

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from app.api.schemas.common import ListObject, Metadata, Request, Response, Text
from app.db.repositories.exports import Export
from app.domain.errors import InvalidInput
from app.domain.exports import EXPORT_FORMATS, ExportStatus
from app.services.exports import ExportRequest

_FORMATS = "\n".join(
    f"- `{name}`: {one.summary} Quantization: {', '.join(f'`{q}`' for q in one.limits)}."
    for name, one in EXPORT_FORMATS.items()
)

Format = Annotated[
    str, WithJsonSchema({"type": "string", "enum": list(EXPORT_FORMATS)}), Field(examples=["gguf"])
]


class CreateExportRequest(Request):
    """Which model is to be exported, and as what."""

    model: Annotated[
        Text, Field(min_length=1, description="A fine-tuned model, or the model of a checkpoint.")
    ]
    format: Annotated[Format, Field(description=f"One of:\n\n{_FORMATS}")]
    quantization: Annotated[
        Text | None,
        Field(description="In which number format; without it the first one of the format."),
    ] = None
    metadata: Metadata | None = None

    def to_domain(self) -> ExportRequest:
        """Raises: InvalidInput, if the format is none of ours."""
        if self.format not in EXPORT_FORMATS:
            raise InvalidInput(
                f"the format {self.format!r} is not offered; expected {', '.join(EXPORT_FORMATS)}",
                param="format",
            )
        return ExportRequest(self.model, self.format, self.quantization, self.metadata)


class ExportLimit(Response):
    """Beyond it the export is refused; null is measured and not limited."""

    max_abs_logit_difference: float | None
    relative_difference: float
    mean_kl: float


class ExportVerification(Response):
    """What an independent loader computes from the export, against the fine-tuned model."""

    method: Annotated[str, Field(description="What loaded the export.")]
    inputs: Annotated[
        str, Field(description="What was compared on: held-out or training records, or fixed ones.")
    ]
    max_abs_logit_difference: Annotated[
        float | None,
        Field(description="Over all numbers of the model's output; null if one is not finite."),
    ]
    relative_difference: Annotated[
        float | None,
        Field(description="Norm of the difference over that of the output; null likewise."),
    ]
    mean_kl: Annotated[
        float | None,
        Field(description="In nats; null where a model gives no probabilities."),
    ]
    tokens: Annotated[
        int, Field(description="Positions compared; of models that read no text, inputs.")
    ]
    limit: ExportLimit
    is_within_limit: bool


class ExportError(Response):
    """Why an export failed."""

    code: str
    message: str
    param: str | None


class ExportObject(Response):
    """A fine-tuned model on its way out of the house."""

    id: str
    object: Literal["export"] = "export"
    created_at: int
    finished_at: int | None
    status: ExportStatus
    model: str
    format: Format
    quantization: str
    result_files: Annotated[
        list[str], Field(description="Ids of files, to be had at `/v1/files/{file_id}/content`.")
    ]
    verification: Annotated[
        ExportVerification | None, Field(description="There once it was measured.")
    ]
    error: ExportError | None
    metadata: dict[str, str] | None

    @classmethod
    def of(cls, export: Export) -> "ExportObject":
        return cls(
            id=export.id,
            created_at=int(export.created_at),
            finished_at=int(export.finished_at) if export.finished_at is not None else None,
            status=export.status,
            model=export.model,
            format=export.format,
            quantization=export.quantization,
            result_files=export.result_files or [],
            verification=_verification(export.verification),
            error=ExportError(**export.error) if export.error else None,
            metadata=export.metadata,
        )


class ExportList(Response):
    object: ListObject = "list"
    data: list[ExportObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


def _verification(stored: dict[str, Any] | None) -> ExportVerification | None:
    return ExportVerification.model_validate(stored) if stored else None


EXAMPLE_EXPORT = {
    "model": "ft:smollm2-135m-instruct:acme:support-desk:abc123",
    "format": "gguf",
    "quantization": "q8_0",
}
