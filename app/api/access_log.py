"""The access log without the probes: a line a second that says nothing hides those that do."""

import logging

PROBES = frozenset({"/healthz", "/readyz", "/metrics"})


def leave_out_probes() -> None:
    """Keep successful probes out of uvicorn's access log. May be called any number of times."""
    logging.getLogger("uvicorn.access").addFilter(_is_worth_a_line)


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    # Uvicorn's arguments: client, method, path with query, HTTP version, status.
    if not isinstance(record.args, tuple) or len(record.args) != 5:
        return True
    path, status = str(record.args[2]), record.args[4]
    return path not in PROBES or status != 200
