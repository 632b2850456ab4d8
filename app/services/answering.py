"""Letting one version answer, and counting it."""

from typing import Any

from app.resources import Resources
from app.services import ensembles
from app.services.calls import Call
from app.services.metering import Meter


async def answer(resources: Resources, call: Call, meter: Meter) -> dict[str, Any]:
    """Let a version answer, and count it. Raises: as `inference.complete` does."""
    try:
        if call.ensemble is not None:
            given = await ensembles.predict(resources.engine, call.ensemble, call.body, call.caller)
        else:
            given = await resources.engine.complete(call.route, call.body, call.files, call.caller)
    except BaseException as error:
        meter.failed(error)
        raise
    meter.named(given)
    meter.answered(given.get("usage"))
    return given
