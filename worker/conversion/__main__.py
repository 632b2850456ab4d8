"""Entry of the converting process: `python -m worker.conversion <dotted path> <from> <into>`."""

import sys
from pathlib import Path

from app.domain.errors import DomainError
from app.domain.registry import resolve


def main(dotted_path: str, fetched: str, into: str) -> None:
    """Run one converter. Whoever started the process reads the last line of its stderr."""
    resolve(dotted_path)(Path(fetched), Path(into))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except DomainError as error:
        sys.exit(error.message)
