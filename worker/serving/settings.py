"""Settings of the engine process, read once from the environment; units are in the names."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from app.domain.errors import InvalidInput
from app.settings import load_settings


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How one engine process listens and how much it takes on.

    The memory for keys and values is bounded by `max_running` times the context length of a base
    model; the loop neither pages nor evicts it.

    Attributes:
        adapter_root: adapters are loaded from below this directory only.
        api_key: bearer token that every `/v1` route then asks for.
        preload: ids of base models that are loaded before the engine accepts requests.
        grace_seconds: how long running answers may go on after SIGTERM.
        max_running: sequences that take part in one step.
        max_queued: sequences that wait for a place; beyond this, requests get a 429.
        prefill_tokens_per_step: prompt tokens in one step, which bounds how long the prompt of
            one request can hold up the next token of the others.
        max_adapters: adapters kept in memory, and as many models of tasks beside text generation;
            the least recently used idle one makes room.
        max_own_models: how many of them may have all weights of a base model for themselves,
            since their kind of adapter cannot share a batch.
        max_body_bytes: longest request body.
        prediction_tokens_per_pass: tokens, or what compares to them, of the inputs that models
            of other tasks compute together.
        max_queued_predictions: inputs that wait for it; beyond this, requests get a 429.
        max_prediction_bytes: longest body of a request for predictions, which may hold media.
    """

    adapter_root: Path
    host: str = "127.0.0.1"
    port: int = 8001
    api_key: str | None = field(default=None, repr=False)
    preload: tuple[str, ...] = ()
    grace_seconds: int = 10
    max_running: int = 16
    max_queued: int = 256
    prefill_tokens_per_step: int = 256
    max_adapters: int = 64
    max_own_models: int = 2
    max_body_bytes: int = 8 << 20
    prediction_tokens_per_pass: int = 2048
    max_queued_predictions: int = 4096
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
        preload=tuple(environment.get("ENGINE_PRELOAD", "").replace(",", " ").split()),
        grace_seconds=_count(environment, "ENGINE_GRACE_SECONDS", 10),
        max_running=_count(environment, "ENGINE_MAX_RUNNING", 16),
        max_queued=_count(environment, "ENGINE_MAX_QUEUED", 256),
        prefill_tokens_per_step=_count(environment, "ENGINE_PREFILL_TOKENS_PER_STEP", 256),
        max_adapters=_count(environment, "ENGINE_MAX_ADAPTERS", 64),
        max_own_models=_count(environment, "ENGINE_MAX_OWN_MODELS", 2),
        max_body_bytes=_count(environment, "ENGINE_MAX_BODY_BYTES", 8 << 20),
        prediction_tokens_per_pass=_count(environment, "ENGINE_PREDICTION_TOKENS_PER_PASS", 2048),
        max_queued_predictions=_count(environment, "ENGINE_MAX_QUEUED_PREDICTIONS", 4096),
        max_prediction_bytes=_count(environment, "ENGINE_MAX_PREDICTION_BYTES", 32 << 20),
    )


def _adapter_root(environment: Mapping[str, str]) -> Path:
    if root := environment.get("ADAPTER_ROOT"):
        return Path(root).expanduser().resolve()
    storage = urlsplit(load_settings(environment).storage_url)
    if storage.scheme != "file":
        raise InvalidInput("ADAPTER_ROOT must be set where STORAGE_URL is not a local directory")
    return Path(unquote(storage.path)).resolve()


def _count(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name)
    if not text:
        return default
    if not text.isdecimal() or int(text) == 0:
        raise InvalidInput(f"{name} must be a whole number greater than 0, found {text!r}")
    return int(text)
