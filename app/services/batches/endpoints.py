"""What answers the requests of a batch, by endpoint."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from app.domain.task_routes import CHAT, COMPLETIONS, EMBEDDINGS, PREDICTIONS, RESPONSES, SCORES
from app.inference import Caller
from app.inference.port import Route
from app.resources import Resources
from app.services import inference, responses

Complete = Callable[[Resources, Caller, dict[str, Any]], Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint.

    Attributes:
        route: models that answer on this route of the engine answer here.
        complete: returns one whole answer; raises as `inference.complete` does.
    """

    route: Route
    complete: Complete


def _of_route(route: Route) -> Endpoint:
    def complete(
        resources: Resources, caller: Caller, body: dict[str, Any]
    ) -> Awaitable[dict[str, Any]]:
        return inference.complete(resources, caller, route, body)

    return Endpoint(route, complete)


# The type of each one's requests is in `app/api/batch_wire.py`.
ENDPOINTS: Final[Mapping[str, Endpoint]] = {
    **{route: _of_route(route) for route in (CHAT, COMPLETIONS, EMBEDDINGS, PREDICTIONS, SCORES)},
    RESPONSES: Endpoint(CHAT, responses.complete),
}
