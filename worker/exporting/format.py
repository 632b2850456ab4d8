"""What every format of an export offers."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from torch import Tensor

from worker.exporting.model import ExportedModel

Packing = Literal["tar.gz", "tar", "files"]


@dataclass(frozen=True, slots=True)
class ReadBack:
    """What an export computes, once something else than its writer has loaded it.

    Attributes:
        method: what loaded it, for people.
        outputs: as `ExportedModel.outputs` gives them; computed as they are asked for.
    """

    method: str
    outputs: Iterable[Tensor]


class Format(Protocol):
    """One format.

    Attributes:
        packing: how its files leave: in an archive, or each by itself.
    """

    packing: Packing

    def write(self, model: ExportedModel, quantization: str, into: Path) -> None:
        """Write the export's files into an empty directory.

        Raises:
            ExportFailed: the model cannot be written like that; the message says why.
        """

    def read_back(self, model: ExportedModel, directory: Path) -> ReadBack:
        """Load what was written by other code than that which wrote it.

        Args:
            model: for the base model and the inputs; what was tuned is not taken from it.
        """

    def usage(self, name: str) -> str:
        """Return how the export is loaded, in Markdown.

        Args:
            name: of the export's files.
        """
