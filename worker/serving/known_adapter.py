"""What the name of an adapter stands for, wherever its weights are."""

import time
from dataclasses import dataclass, field

from worker.serving.adapter_reading import AdapterSource, ReadAdapter
from worker.serving.base import ServedBase
from worker.serving.served_model import ServedModel


@dataclass(frozen=True, slots=True)
class KnownAdapter:
    """An adapter that was read once. It never changes.

    Attributes:
        is_alone: it needs weights of its own.
    """

    name: str
    source: AdapterSource
    base: ServedBase
    fingerprint: str
    chat_template: str | None
    is_alone: bool
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, name: str, source: AdapterSource, read: ReadAdapter) -> "KnownAdapter":
        return cls(
            name=name,
            source=source,
            base=read.base,
            fingerprint=read.fingerprint,
            chat_template=read.chat_template,
            is_alone=read.weights is None,
        )

    def served(self, base: ServedBase, slot: str | None) -> ServedModel:
        """Return it as a model that can answer.

        Args:
            base: its own base model, or its own weights.
            slot: its name in the loop of `base`; None has no part in it, or all of it.
        """
        return ServedModel(
            name=self.name,
            base=base,
            directory=self.source.directory,
            fingerprint=self.fingerprint,
            slot=slot,
            chat_template=self.chat_template,
            is_alone=self.is_alone,
            created=self.created,
        )
