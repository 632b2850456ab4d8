"""What a source brought, as converters ask for it."""

from pathlib import Path

from app.domain.errors import InvalidInput


def only_file(fetched: Path, pattern: str) -> Path:
    """Return the one file that matches. Raises: InvalidInput."""
    found = list(fetched.glob(pattern))
    if len(found) != 1:
        raise InvalidInput(f"expected one {pattern}, found {len(found)}")
    return found[0]
