"""What the service stands on beside its database: broker, storage, base models, engine."""

import asyncio
import secrets
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from app.base_models import find_installed, load_catalogue
from app.domain.errors import InvalidInput, UnknownName
from app.inference import EngineState, open_engine
from app.queue import check_broker
from app.resources import Resources
from app.services.inspection.findings import Finding, fail, ok, reason_of, size, warn
from app.services.inspection.vital_signs import BROKER_TIMEOUT_SECONDS
from app.settings import Settings

_NOT_YET = "It is made when it is first needed. If it was there before, restart the service."


def check_broker_answers(resources: Resources) -> Iterator[Finding]:
    """Look whether messages can be sent, and whether Redis would throw them away."""
    absent = absent_directory(resources.settings.broker_url)
    if absent is not None:
        yield warn("broker", f"there is no {absent} yet", _NOT_YET)
        return
    shown = _without_password(resources.settings.broker_url)
    try:
        settings = check_broker(resources.celery, BROKER_TIMEOUT_SECONDS)
    except Exception as error:  # Any client's way of saying no.
        yield fail(
            "broker",
            f"{shown} does not answer: {reason_of(error)}",
            "Start the broker, or correct BROKER_URL. Jobs are accepted and wait meanwhile.",
        )
        return
    policy = settings.get("maxmemory-policy", "noeviction")
    if policy != "noeviction":
        yield fail(
            "broker",
            f"{shown} has maxmemory-policy {policy}: it may throw messages away",
            "CONFIG SET maxmemory-policy noeviction, and in its configuration file.",
        )
    elif settings.get("appendonly", "yes") != "yes":
        yield warn(
            "broker",
            f"{shown} answers, but forgets its messages when it is restarted",
            "CONFIG SET appendonly yes, and in its configuration file. Without it nothing is "
            "lost: messages are sent again after REDISPATCH_AFTER_SECONDS.",
        )
    else:
        yield ok("broker", f"{shown} answers")


def check_storage(resources: Resources) -> Iterator[Finding]:
    """Write, read and delete a probe, and look at the room that is left."""
    url = resources.settings.storage_url
    absent = absent_directory(url)
    if absent is not None:
        yield _check_absent_storage(absent)
        return
    storage, key, probe = resources.storage, f"files/probe-{secrets.token_hex(12)}", b"tunesmith"
    try:
        storage.put(key, [probe])
        try:
            with storage.open(key) as stream:
                read = stream.read()
        finally:
            storage.delete(key)
    except Exception as error:  # Any backend's way of saying no.
        advice = "Let the user of the service write there, or correct STORAGE_URL."
        yield fail("storage", f"{url} takes nothing: {reason_of(error)}", advice)
        return
    if read != probe:
        advice = "Suspect the disk: stop the service and check it."
        yield fail("storage", f"{url} gives back other bytes than it was given", advice)
        return
    yield ok("storage", f"{url} takes and gives back content")
    yield _check_room(resources)


def check_base_models(resources: Resources) -> Iterator[Finding]:
    """Look which base models of the catalogue are on this machine."""
    settings = resources.settings
    try:
        models = load_catalogue(settings.catalogue_path).models.values()
    except InvalidInput as error:
        yield fail("base models", error.message, f"Correct {settings.catalogue_path}.")
        return
    installed = {model.id: find_installed(model, settings.models_dir) for model in models}
    present = [name for name, model in installed.items() if model is not None]
    absent = [name for name, model in installed.items() if model is None]
    if not present:
        yield warn(
            "base models",
            f"none is on this machine: {', '.join(absent)}",
            f"Fetched at the first use; `tunesmith models fetch {absent[0]}` does it now.",
        )
        return
    # Nobody needs all of the catalogue: one that is not asked for is nothing to mend.
    later = f"; fetched at their first use: {', '.join(absent)}" if absent else ""
    yield ok("base models", f"installed: {', '.join(present)}{later}")


def check_engines(resources: Resources) -> Iterator[Finding]:
    """Look whether models can be called."""
    try:
        states = asyncio.run(_engines(resources.settings))
    except (InvalidInput, UnknownName) as error:
        yield fail("engine", error.message, "Correct ENGINE_URL or ENGINE_KIND.")
        return
    others = "no model can be called"
    if any(state.is_up for state in states):
        others = "the others do its work"
    for state in states:
        if state.is_up:
            yield ok("engine", f"{state.url} answers")
        else:
            advice = (
                "Start it (`tunesmith engine`, or all with `tunesmith up`). Jobs do not need it."
            )
            yield warn("engine", f"{state.url} does not answer: {others}", advice)


def absent_directory(url: str) -> Path | None:
    """Return the directory that a URL names and that is not there; opening it would make it."""
    parts = urlsplit(url)
    directory = Path(unquote(parts.path))
    is_absent = parts.scheme in ("file", "filesystem") and not directory.is_dir()
    return directory if is_absent else None


def _check_absent_storage(directory: Path) -> Finding:
    nearest = next(path for path in (directory, *directory.parents) if path.exists())
    if nearest.is_dir():
        return warn("storage", f"there is no {directory} yet", _NOT_YET)
    advice = "Correct STORAGE_URL, or set aside what is in the place of a directory."
    return fail("storage", f"{nearest} is there and not a directory", advice)


def _check_room(resources: Resources) -> Finding:
    free, wanted = resources.storage.free_bytes(), resources.settings.min_free_bytes
    found = f"{size(free)} free, {size(wanted)} wanted"
    if free >= wanted:
        return ok("storage disk", found)
    return fail(
        "storage disk",
        found,
        "Make room, or lower MIN_FREE_BYTES: until then uploads are refused and no job starts.",
    )


async def _engines(settings: Settings) -> list[EngineState]:
    # A client belongs to the event loop that it is first used in.
    engine = open_engine(settings)
    try:
        return await engine.look()
    finally:
        await engine.close()


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return parts._replace(netloc=f"***@{parts.netloc.rpartition('@')[2]}").geturl()
