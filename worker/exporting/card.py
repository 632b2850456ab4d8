"""The model card of an export: where it comes from, and how it is loaded."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from worker.exporting.command import Command


def card(command: Command, adapter: Path, verification: Mapping[str, Any], usage: str) -> str:
    """Return the card as Markdown, in the front matter that the Hugging Face hub reads."""
    manifest = _manifest(adapter)
    return "\n".join([*_sections(command, manifest, verification, usage)])


def _sections(
    command: Command, manifest: Mapping[str, Any], verification: Mapping[str, Any], usage: str
) -> Iterator[str]:
    spec, base, told = command.spec, command.base, command.provenance
    yield from _front_matter(command)
    yield f"# {told.model}"
    yield ""
    yield f"{base.name_or_path}, fine-tuned with Tunesmith for {spec.task} by {spec.method}."
    yield f"This is the export `{command.format}`, quantization `{command.quantization}`."
    yield ""
    yield "## Load it"
    yield ""
    yield usage
    yield "Compare the files with `sha256sum --check SHA256SUMS`."
    yield ""
    yield "## Provenance"
    yield ""
    yield "| | |"
    yield "|---|---|"
    for name, value in _provenance(command, manifest):
        yield f"| {name} | {value} |"
    yield ""
    if told.report:
        yield "## Held-out metrics"
        yield ""
        yield from _metrics(told.report)
        yield ""
    yield "## Verification"
    yield ""
    yield (
        f"Loaded back by {verification['method']} and compared with the fine-tuned model, in "
        f"float32, on {verification['tokens']} positions ({verification['inputs']}):"
    )
    yield ""
    yield "| | found | limit |"
    yield "|---|---|---|"
    for name, limit in verification["limit"].items():
        shown = "none" if limit is None else f"{limit:g}"
        yield f"| {name} | {_number(verification[name])} | {shown} |"
    yield ""
    yield "## Hyperparameters"
    yield ""
    yield from _block(
        {
            "method": spec.method,
            "seed": spec.seed,
            "hyperparameters": manifest.get("spec", {}).get("hyperparameters"),
            "method_options": spec.method_options,
            "adapter": {"type": spec.adapter.type, **spec.adapter.options},
            "evaluation": manifest.get("spec", {}).get("evaluation"),
        }
    )
    yield ""
    if manifest:
        yield "## Manifest"
        yield ""
        yield "What training wrote beside the adapter."
        yield ""
        yield from _block({name: one for name, one in manifest.items() if name != "spec"})
        yield ""


def _front_matter(command: Command) -> Iterator[str]:
    yield "---"
    yield f"base_model: {json.dumps(command.base.name_or_path)}"
    yield f"license: {json.dumps(command.provenance.base_licence)}"
    yield f"pipeline_tag: {command.spec.task}"
    yield "tags: [tunesmith]"
    yield "---"
    yield ""


def _provenance(command: Command, manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    spec, told = command.spec, command.provenance
    yield "Base model", command.base.name_or_path
    yield "Source of the base model", f"`{told.base_source}`"
    yield "Revision of the source", f"`{told.base_revision}`"
    yield "Revision of the weights", f"`{command.base.revision}`"
    yield "Licence of the base model", told.base_licence
    yield "Job", f"`{spec.job_id}`"
    if "step" in manifest:
        yield "Step", str(manifest["step"])
    for name, file in (("Training", spec.training_file), ("Validation", spec.validation_file)):
        if file is not None:
            yield (
                f"{name} file",
                f"`{file.file_id}`, {file.record_count} records, SHA-256 `{file.sha256}`",
            )
    if spec.start_from is not None:
        start = spec.start_from
        yield "Started from", f"`{start.model or (start.file and start.file.file_id)}`"
    yield "Seed", str(spec.seed)
    packages = manifest.get("packages", {})
    yield "Trained with", ", ".join(f"{name} {one}" for name, one in packages.items() if one)


def _metrics(report: Mapping[str, Any]) -> Iterator[str]:
    yield f"On {report['held_out_rows']} records that were kept from training:"
    yield ""
    yield "| metric | base | tuned |"
    yield "|---|---|---|"
    for name, one in report["metrics"].items():
        yield f"| {name} | {_number(one['base'])} | {_number(one['tuned'])} |"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "–"


def _block(value: Any) -> Iterator[str]:
    yield "```json"
    yield json.dumps(value, indent=2)
    yield "```"


def _manifest(adapter: Path) -> Mapping[str, Any]:
    path = adapter / "manifest.json"
    found: Mapping[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found
