"""What the name of a model of text generation stands for."""

import hashlib
import time
from dataclasses import dataclass, field
from pathlib import Path

from worker.serving.base import ServedBase


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that can answer now. It never changes: another version has another name.

    Attributes:
        directory: where its weights were read from.
        fingerprint: differs wherever answers could.
        slot: the adapter's name in the loop of `base`; None is the base model itself, or
            tuned weights that no one else uses.
        is_alone: `base` has been tuned and serves this model only.
        chat_template: the adapter's own; None is the base model's.
    """

    name: str
    base: ServedBase
    directory: Path
    fingerprint: str
    slot: str | None = None
    chat_template: str | None = None
    is_alone: bool = False
    created: int = field(default_factory=lambda: int(time.time()))


def fingerprint(*parts: str) -> str:
    """Return what tells answers of different weights apart."""
    return "fp_" + hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
