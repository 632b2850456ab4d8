import logging

import pytest

from app.api.access_log import leave_out_probes

LINE = '%s - "%s %s HTTP/%s" %d'


@pytest.mark.parametrize(
    ("path", "status", "is_logged"),
    [
        ("/healthz", 200, False),
        ("/readyz", 200, False),
        ("/metrics", 200, False),
        # A service that is not ready is worth a line, and so is everything that users do.
        ("/readyz", 503, True),
        ("/v1/models", 200, True),
        ("/v1/models?a=/readyz", 200, True),
    ],
)
def test_successful_probes_are_left_out(
    caplog: pytest.LogCaptureFixture, path: str, status: int, is_logged: bool
) -> None:
    leave_out_probes()
    leave_out_probes()
    with caplog.at_level(logging.INFO, "uvicorn.access"):
        logging.getLogger("uvicorn.access").info(LINE, "::1:1", "GET", path, "1.1", status)
    assert bool(caplog.records) == is_logged
