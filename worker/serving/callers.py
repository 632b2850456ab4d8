"""For whom the engine works: what the headers of a request say, which the API sets."""

from starlette.requests import Request

from app.domain.errors import InvalidInput
from app.inference import Caller
from app.inference.port import PRIORITY_HEADER, PROJECT_HEADER, Priority

# Whoever asks the engine without these headers: they all are one project.
ANONYMOUS = Caller("")

_PRIORITIES: dict[str, Priority] = {"normal": "normal", "low": "low"}


def caller_of(request: Request) -> Caller:
    """Return for whom a request is. Raises: InvalidInput, naming the header."""
    priority = request.headers.get(PRIORITY_HEADER) or ANONYMOUS.priority
    if priority not in _PRIORITIES:
        raise InvalidInput(
            f"the header '{PRIORITY_HEADER}' must be {' or '.join(_PRIORITIES)}, "
            f"found {priority[:40]!r}",
            param=PRIORITY_HEADER,
        )
    project_id = request.headers.get(PROJECT_HEADER) or ANONYMOUS.project_id
    return Caller(project_id, _PRIORITIES[priority])
