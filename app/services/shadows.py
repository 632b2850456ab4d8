"""Shadow traffic: what a version has answered is asked of another one, too, and compared.

It begins when the answer was given, at low priority, and waits for nobody: what is too much is
dropped, and counted.
"""

import asyncio
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.domain.aliases import Shadow
from app.domain.errors import DomainError
from app.domain.likeness import Likeness, likeness
from app.domain.traffic import ShadowSample, Version
from app.inference import Caller
from app.inference.port import Route
from app.resources import Resources
from app.services import answering, calls
from app.services.metering import Meter

# Of one process, and of all its aliases together: the engine has its own queue of low priority.
MAX_UNDER_WAY = 8
# Media would fill the memory of whoever waits.
MAX_CHARACTERS = 1 << 20

_log = logging.getLogger("tunesmith.shadows")


@dataclass(frozen=True, slots=True)
class Answered:
    """A request that was answered, and what is to be compared with."""

    version: Version
    route: Route
    body: dict[str, Any]
    answer: dict[str, Any]
    seconds: float
    completion_tokens: int


def follow(resources: Resources, shadow: Shadow, answered: Answered) -> None:
    """Ask the shadow in the background, unless too much is under way. Returns at once."""
    traffic = resources.traffic
    version = _version(shadow, answered)
    if len(traffic.background) >= MAX_UNDER_WAY or _characters(answered.body) > MAX_CHARACTERS:
        traffic.count_dropped(version)
        return
    task = asyncio.create_task(_sample(resources, shadow, answered, version))
    traffic.background.add(task)
    task.add_done_callback(traffic.background.discard)


async def close(resources: Resources) -> None:
    """End whatever is under way; it is counted as cancelled."""
    under_way = list(resources.traffic.background)
    for task in under_way:
        task.cancel()
    await asyncio.gather(*under_way, return_exceptions=True)


async def _sample(
    resources: Resources, shadow: Shadow, answered: Answered, version: Version
) -> None:
    caller = Caller(version.project_id, "low")
    meter = Meter(resources.traffic, version)
    given: dict[str, Any] = {}
    alike: Likeness | None = None
    error: str | None = None
    try:
        call = await asyncio.to_thread(
            calls.located, resources, version, caller, answered.route, _whole(answered.body)
        )
        given = await answering.answer(resources, call, meter)
        alike = await asyncio.to_thread(likeness, answered.route, answered.answer, given)
    except DomainError as failure:
        meter.failed(failure)
        error = failure.message
    except Exception:  # Nobody waits for it who could be told.
        _log.exception("the shadow %s could not be compared", shadow.model)
        error = "The answers could not be compared."
    resources.traffic.note_sample(
        ShadowSample(
            project_id=version.project_id,
            alias_id=version.alias_id,
            revision=version.revision,
            route=answered.route,
            model=answered.version.model,
            shadow_model=shadow.model,
            seconds=answered.seconds,
            shadow_seconds=meter.seconds,
            completion_tokens=answered.completion_tokens,
            shadow_completion_tokens=meter.completion_tokens,
            is_identical=None if alike is None else alike.is_identical,
            similarity=None if alike is None else alike.similarity,
            error=error,
            contents=_contents(answered, given) if shadow.records_contents else None,
        )
    )


def _version(shadow: Shadow, answered: Answered) -> Version:
    version = answered.version
    return Version(version.project_id, shadow.model, version.alias_id, version.revision, "shadow")


def _whole(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request without its wish for a stream."""
    return {name: value for name, value in body.items() if name not in ("stream", "stream_options")}


def _contents(answered: Answered, given: Mapping[str, Any]) -> str:
    # What tells who asked is no part of what was asked.
    asked = {
        name: value
        for name, value in answered.body.items()
        if name not in ("user", "safety_identifier", "model")
    }
    return json.dumps({"request": asked, "answer": answered.answer, "shadow_answer": given or None})


def _characters(value: Any) -> int:
    """Return about how long a request is."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(len(name) + _characters(one) for name, one in value.items())
    if isinstance(value, list):
        return sum(1 + _characters(one) for one in value)
    return 1
