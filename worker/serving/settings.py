"""Settings of the engine process, read once from the environment; units are in the names."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from app.domain.errors import InvalidInput
from app.settings import load_settings

WEIGHTS = ("native", "int8")


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How one engine process listens and how much it takes on.

    Attributes:
        adapter_root: adapters are loaded from below this directory only.
        api_key: bearer token that every `/v1` route then asks for.
        weights: `native`, or `int8`: base models are computed in 8 bits on a CPU, where that costs
            little enough; see docs/deployment.md.
        preload: ids of base models that are loaded before the engine accepts requests.
        grace_seconds: how long running answers may go on after SIGTERM.
        max_running: sequences that take part in one step.
        reserved_places: how many of these sequences of low priority never take.
        max_queued: sequences that wait for a place; beyond this, requests get a 429.
        max_queued_per_project: how many of them may be one project's.
        queue_timeout_seconds: a request that has not got a place by then gets a 429; one of low
            priority waits as long as its client does.
        kv_tokens: tokens of which one base model keeps keys and values in memory, of running
            sequences and of what others can begin with; None follows from the memory there is,
            see `default_kv_tokens`.
        prefill_tokens_per_step: prompt tokens in one step, which bounds how long the prompt of
            one request can hold up the next token of the others.
        adapter_slots: adapters of text generation that can take part in a step. Here and below
            the least recently used idle one makes room.
        max_adapters: those kept in memory, in a slot or not.
        max_adapter_bytes: what they may take together.
        pinned_adapters: names of adapters that never make room once they are loaded.
        max_own_models: how many more may have all weights of a base model for themselves,
            since their kind of adapter cannot share a batch.
        max_task_models: tuned models of tasks beside text generation that are kept in memory.
        max_body_bytes: longest request body.
        prediction_tokens_per_pass: tokens, or what compares to them, of the inputs that models
            of other tasks compute together.
        max_queued_predictions: inputs that wait for it; beyond this, requests get a 429.
        max_queued_predictions_per_project: how many of them may be one project's.
        max_prediction_bytes: longest body of a request for predictions, which may hold media.
    """

    adapter_root: Path
    host: str = "127.0.0.1"
    port: int = 8001
    api_key: str | None = field(default=None, repr=False)
    weights: str = "native"
    preload: tuple[str, ...] = ()
    grace_seconds: int = 10
    max_running: int = 16
    reserved_places: int = 2
    max_queued: int = 256
    max_queued_per_project: int = 128
    queue_timeout_seconds: int = 120
    kv_tokens: int | None = None
    prefill_tokens_per_step: int = 256
    adapter_slots: int = 64
    max_adapters: int = 256
    max_adapter_bytes: int = 4 << 30
    pinned_adapters: frozenset[str] = frozenset()
    max_own_models: int = 2
    max_task_models: int = 64
    max_body_bytes: int = 8 << 20
    prediction_tokens_per_pass: int = 2048
    max_queued_predictions: int = 4096
    max_queued_predictions_per_project: int = 2048
    max_prediction_bytes: int = 32 << 20


def load_engine_settings(environment: Mapping[str, str] = os.environ) -> EngineSettings:
    """Read the settings from the environment.

    Raises:
        InvalidInput: a variable does not hold what it must; the message names it.
    """
    return EngineSettings(
        adapter_root=_adapter_root(environment),
        host=environment.get("ENGINE_HOST") or "127.0.0.1",
        port=_count(environment, "ENGINE_PORT", 8001),
        api_key=environment.get("ENGINE_API_KEY") or None,
        weights=_weights(environment),
        preload=_names(environment, "ENGINE_PRELOAD"),
        grace_seconds=_count(environment, "ENGINE_GRACE_SECONDS", 10),
        max_running=_count(environment, "ENGINE_MAX_RUNNING", 16),
        reserved_places=_count(environment, "ENGINE_RESERVED_PLACES", 2, least=0),
        max_queued=_count(environment, "ENGINE_MAX_QUEUED", 256),
        max_queued_per_project=_count(environment, "ENGINE_MAX_QUEUED_PER_PROJECT", 128),
        queue_timeout_seconds=_count(environment, "ENGINE_QUEUE_TIMEOUT_SECONDS", 120),
        kv_tokens=_count(environment, "ENGINE_KV_TOKENS", 0) or None,
        prefill_tokens_per_step=_count(environment, "ENGINE_PREFILL_TOKENS_PER_STEP", 256),
        **_tiers(environment),
        max_own_models=_count(environment, "ENGINE_MAX_OWN_MODELS", 2),
        max_task_models=_count(environment, "ENGINE_MAX_TASK_MODELS", 64),
        max_body_bytes=_count(environment, "ENGINE_MAX_BODY_BYTES", 8 << 20),
        prediction_tokens_per_pass=_count(environment, "ENGINE_PREDICTION_TOKENS_PER_PASS", 2048),
        max_queued_predictions=_count(environment, "ENGINE_MAX_QUEUED_PREDICTIONS", 4096),
        max_queued_predictions_per_project=_count(
            environment, "ENGINE_MAX_QUEUED_PREDICTIONS_PER_PROJECT", 2048
        ),
        max_prediction_bytes=_count(environment, "ENGINE_MAX_PREDICTION_BYTES", 32 << 20),
    )


def _tiers(environment: Mapping[str, str]) -> dict[str, Any]:
    slots = _count(environment, "ENGINE_ADAPTER_SLOTS", 64)
    held = _count(environment, "ENGINE_MAX_ADAPTERS", 256)
    pinned = frozenset(_names(environment, "ENGINE_PINNED_ADAPTERS"))
    if len(pinned) >= min(slots, held):
        raise InvalidInput(
            f"ENGINE_PINNED_ADAPTERS names {len(pinned)} adapters, which leaves no place for any "
            "other: raise ENGINE_ADAPTER_SLOTS and ENGINE_MAX_ADAPTERS above that"
        )
    return {
        "adapter_slots": slots,
        "max_adapters": held,
        "max_adapter_bytes": _count(environment, "ENGINE_MAX_ADAPTER_BYTES", 4 << 30),
        "pinned_adapters": pinned,
    }


def _names(environment: Mapping[str, str], name: str) -> tuple[str, ...]:
    return tuple(environment.get(name, "").replace(",", " ").split())


def _adapter_root(environment: Mapping[str, str]) -> Path:
    if root := environment.get("ADAPTER_ROOT"):
        return Path(root).expanduser().resolve()
    storage = urlsplit(load_settings(environment).storage_url)
    if storage.scheme != "file":
        raise InvalidInput("ADAPTER_ROOT must be set where STORAGE_URL is not a local directory")
    return Path(unquote(storage.path)).resolve()


def _weights(environment: Mapping[str, str]) -> str:
    chosen = environment.get("ENGINE_WEIGHTS") or "native"
    if chosen not in WEIGHTS:
        raise InvalidInput(f"ENGINE_WEIGHTS must be {' or '.join(WEIGHTS)}, found {chosen!r}")
    return chosen


def _count(environment: Mapping[str, str], name: str, default: int, least: int = 1) -> int:
    text = environment.get(name)
    if not text:
        return default
    if not text.isdecimal() or int(text) < least:
        raise InvalidInput(f"{name} must be a whole number of at least {least}, found {text!r}")
    return int(text)
