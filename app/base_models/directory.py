"""`dir:<path>`: a model that the operator has put on this machine."""

import shutil
from pathlib import Path

from app.base_models.sources import MODEL_FILES
from app.domain.errors import InvalidInput, Unavailable


def fetch(reference: str, revision: str, sha256: str | None, into: Path) -> None:
    """Link (or copy) the model's files. See `sources.Source`."""
    source = Path(reference)
    if not source.is_absolute():
        raise InvalidInput(f"dir:{reference}: expected an absolute path")
    if not source.is_dir():
        raise Unavailable(f"dir:{reference}: there is no such directory on this machine")
    for pattern in MODEL_FILES:
        for path in source.glob(pattern):
            _link(path.resolve(), into / path.name)


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # Another file system.
        shutil.copyfile(source, target)
