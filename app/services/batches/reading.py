"""Reading the lines of an input one by one, never the whole of it."""

import json
from collections.abc import Iterator
from typing import BinaryIO

from app.db.repositories import files
from app.db.repositories.batches import Batch
from app.domain.errors import InvalidInput
from app.resources import Resources

# So many lines are read at once, and no more of them once they are so long together.
LINES_AT_ONCE = 16
BYTES_AT_ONCE = 1 << 20

# As long as the longest body that a route takes, which holds media, and what a line adds to it.
MAX_LINE_BYTES = (32 << 20) + 65_536


def open_input(resources: Resources, batch: Batch) -> BinaryIO:
    """Open the input of a batch. Raises: NotFound."""
    with resources.database.read() as connection:
        file = files.get_kept(connection, batch.project_id, batch.input_file_id)
    return resources.storage.open(file.storage_key)


def read_lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield every line that is not blank, with its number from 1.

    Raises:
        InvalidInput: a line is longer than any request may be.
    """
    number = 0
    while raw := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(raw) > MAX_LINE_BYTES:
            raise InvalidInput(f"line {number} is longer than {MAX_LINE_BYTES:,} bytes")
        if raw.strip():
            yield number, raw


def take_lines(lines: Iterator[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """Return the next few lines; none at the end."""
    taken: list[tuple[int, bytes]] = []
    length = 0
    while len(taken) < LINES_AT_ONCE and length < BYTES_AT_ONCE:
        pair = next(lines, None)
        if pair is None:
            break
        taken.append(pair)
        length += len(pair[1])
    return taken


def custom_id_of(raw: bytes) -> str:
    """Return what a line that was found valid is known by to its user."""
    custom_id: str = json.loads(raw)["custom_id"]
    return custom_id
