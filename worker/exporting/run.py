"""One export: written, loaded back, compared, described and packed."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from app.domain.errors import ExportFailed
from app.domain.registry import resolve
from app.storage import open_storage
from worker.exporting.card import card
from worker.exporting.command import Command
from worker.exporting.comparison import Comparison, Reference
from worker.exporting.format import Format
from worker.exporting.opening import open_model
from worker.exporting.packing import pack, write_checksums

CARD_NAME = "README.md"
MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True, slots=True)
class Made:
    """What an export left in its directory.

    Attributes:
        files: paths of what is to be stored.
        verification: as the wire has it.
    """

    files: list[str]
    verification: dict[str, Any]


def run_export(command: Command) -> Made:
    """Carry out a command.

    Raises:
        ExportFailed: the model cannot be exported like that, or what was loaded back computes
            something else; then `verification` has the numbers.
        InvalidInput: the model's own files are missing or damaged.
        StorageFull: there is no room.
    """
    chosen: Format = resolve(command.implementation)()
    storage = open_storage(command.storage_url)
    adapter = storage.directory(command.storage_prefix)
    model = open_model(command.base, adapter, command.spec, storage)
    reference = Reference(model.outputs(model.tuned()))
    content = Path(command.into) / command.name
    content.mkdir()
    chosen.write(model, command.quantization, content)
    read = chosen.read_back(model, content)
    comparison = reference.compare(read.outputs)
    verification = {
        "method": read.method,
        "inputs": model.inputs.origin,
        "tokens": model.inputs.tokens,
        **asdict(comparison),
        "limit": asdict(command.limit),
        "is_within_limit": comparison.is_within(command.limit),
    }
    if not verification["is_within_limit"]:
        raise _refusal(comparison, verification)
    text = card(command, adapter, verification, chosen.usage(command.name))
    (content / CARD_NAME).write_text(text)
    if (adapter / MANIFEST_NAME).exists():
        shutil.copyfile(adapter / MANIFEST_NAME, content / MANIFEST_NAME)
    write_checksums(content)
    packed = pack(content, chosen.packing)
    if chosen.packing != "files":
        shutil.rmtree(content)
    return Made([str(path) for path in packed], verification)


def _refusal(comparison: Comparison, verification: dict[str, Any]) -> ExportFailed:
    found = ", ".join(f"{name} {value}" for name, value in asdict(comparison).items())
    limit = ", ".join(f"{name} {value}" for name, value in verification["limit"].items())
    return ExportFailed(
        f"loaded back, the export does not compute what the model does: {found}; the limit is "
        f"{limit}. Nothing was published.",
        verification=verification,
    )
