"""What the process of an export is asked for: one JSON object, the first line of its input."""

from typing import Any

import msgspec

from app.domain.exports import Limit
from app.domain.job_spec import JobSpec
from worker.training.manifest import BaseModelRef


class Provenance(msgspec.Struct, frozen=True):
    """What the model card tells that is neither in the spec nor beside the adapter.

    Attributes:
        model: the fine-tuned model's name.
        base_source: where the base model's files come from, as the catalogue has it.
        base_revision: of the source.
        report: of the job, in short: metrics of the base and of the tuned model.
    """

    model: str
    base_source: str
    base_revision: str
    base_licence: str
    report: dict[str, Any] | None


class Command(msgspec.Struct, frozen=True):
    """Make one export.

    Attributes:
        implementation: dotted path of the format.
        name: of the export's files, without an ending.
        into: an empty directory.
    """

    implementation: str
    format: str
    quantization: str
    limit: Limit
    name: str
    base: BaseModelRef
    spec: JobSpec
    storage_url: str
    storage_prefix: str
    provenance: Provenance
    into: str
