import logging

import pytest

from app.access_log import leave_out
from app.main import PROBES

LINE = '%s - "%s %s HTTP/%s" %d'
LOGGER = logging.getLogger("uvicorn.access")


@pytest.fixture(autouse=True)
def unfiltered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LOGGER, "filters", [])


def is_logged(caplog: pytest.LogCaptureFixture, path: str, status: int) -> bool:
    caplog.clear()
    with caplog.at_level(logging.INFO, LOGGER.name):
        LOGGER.info(LINE, "::1:1", "GET", path, "1.1", status)
    return bool(caplog.records)


@pytest.mark.parametrize(
    ("path", "status", "expected"),
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
    caplog: pytest.LogCaptureFixture, path: str, status: int, expected: bool
) -> None:
    leave_out(PROBES)
    leave_out(PROBES)
    assert len(LOGGER.filters) == 1
    assert is_logged(caplog, path, status) == expected


def test_each_process_has_its_own_paths(caplog: pytest.LogCaptureFixture) -> None:
    leave_out(frozenset({"/v1/models"}))
    assert not is_logged(caplog, "/v1/models", 200)
    assert is_logged(caplog, "/readyz", 200)
