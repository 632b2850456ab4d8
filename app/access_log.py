"""Uvicorn's access log without what is asked all the time; for the API and the engine alike.

Lines that say nothing, every second, hide those that do.
"""

import logging
from dataclasses import dataclass


def leave_out(paths: frozenset[str]) -> None:
    """Keep successful requests for some paths out of it. May be called any number of times."""
    logging.getLogger("uvicorn.access").addFilter(_WorthALine(paths))


# Compared by its value: a logger has each filter once.
@dataclass(frozen=True, slots=True)
class _WorthALine:
    left_out: frozenset[str]

    def __call__(self, record: logging.LogRecord) -> bool:
        # Uvicorn's arguments: client, method, path with query, HTTP version, status.
        if not isinstance(record.args, tuple) or len(record.args) != 5:
            return True
        path, status = str(record.args[2]), record.args[4]
        return path not in self.left_out or status != 200
