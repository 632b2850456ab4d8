"""Settings of every process, read once from the environment; units are in the names."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from app.domain.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Settings:
    """One installation. Only URLs differ between a laptop and a cluster.

    Attributes:
        data_dir: where the embedded defaults keep everything.
        engine_url: where the engines are: a list, as `app.inference.endpoints` describes.
        engine_kind: the kind of those engines that `engine_url` says none of: `builtin` or `vllm`.
        pinned_adapters: names of fine-tuned models that engines are to have in memory.
        engine_port: of the engine that `tunesmith up` runs.
        engines: how many it runs, on this port and those after it.
        lease_ttl_seconds: a worker that is silent for this long loses its job.
        max_attempts: crashes after which a job fails as `worker_lost`.
        max_prediction_bytes: longest body of a request for predictions, which may hold media.
        stall_timeout_seconds: a trainer that tells nothing for this long is killed.
        min_free_bytes: with less room left in storage, uploads are refused and no job is claimed.
        batch_parallel: requests of one batch that are asked at once.
        batches_parallel: requests of all batches that one API process asks at once.
        feedback_window_seconds: for how long feedback on an answer is taken, and samples of shadows
            are kept.
        step_log_path: file to which trainers append a line for every step, or None.
    """

    data_dir: Path
    database_url: str
    broker_url: str
    storage_url: str
    models_dir: Path
    catalogue_path: Path
    engine_url: str
    engine_kind: str = "builtin"
    engine_api_key: str | None = field(default=None, repr=False)
    pinned_adapters: tuple[str, ...] = ()
    engine_port: int = 8001
    engines: int = 1
    host: str = "127.0.0.1"
    port: int = 8000
    organization: str = "default"
    max_upload_bytes: int = 1 << 30
    max_body_bytes: int = 8 << 20
    max_prediction_bytes: int = 32 << 20
    lease_ttl_seconds: float = 60.0
    sweep_interval_seconds: float = 0.5
    redispatch_after_seconds: float = 60.0
    stop_grace_seconds: float = 30.0
    max_attempts: int = 5
    checkpoint_interval_seconds: float = 300.0
    engine_timeout_seconds: float = 600.0
    stall_timeout_seconds: float = 1800.0
    min_free_bytes: int = 512 << 20
    batch_parallel: int = 16
    batches_parallel: int = 32
    feedback_window_seconds: float = 7 * 86_400.0
    step_log_path: Path | None = None


def load_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings from the environment.

    Raises:
        InvalidInput: a variable does not hold what it must; the message names it.
    """
    data_dir = Path(environment.get("TUNESMITH_DATA_DIR") or ".tunesmith").expanduser().resolve()
    engine_port = _port(environment, "ENGINE_PORT", 8001)
    engines = _count(environment, "ENGINES", 1)
    own_urls = ",".join(f"http://127.0.0.1:{engine_port + number}" for number in range(engines))
    return Settings(
        data_dir=data_dir,
        database_url=environment.get("DATABASE_URL") or f"sqlite:///{data_dir}/tunesmith.db",
        broker_url=environment.get("BROKER_URL") or f"filesystem://{data_dir}/broker",
        storage_url=environment.get("STORAGE_URL") or f"file://{data_dir}/storage",
        models_dir=_path(environment, "MODELS_DIR", data_dir / "models"),
        catalogue_path=_path(environment, "MODELS_CATALOGUE", data_dir / "models.toml"),
        engine_url=(environment.get("ENGINE_URL") or own_urls).rstrip("/"),
        engine_kind=environment.get("ENGINE_KIND") or "builtin",
        engine_api_key=environment.get("ENGINE_API_KEY") or None,
        pinned_adapters=tuple(
            environment.get("ENGINE_PINNED_ADAPTERS", "").replace(",", " ").split()
        ),
        engine_port=engine_port,
        engines=engines,
        host=environment.get("API_HOST") or "127.0.0.1",
        port=_port(environment, "API_PORT", 8000),
        organization=environment.get("TUNESMITH_ORGANIZATION") or "default",
        max_upload_bytes=int(_number(environment, "MAX_UPLOAD_BYTES", 1 << 30)),
        max_prediction_bytes=int(_number(environment, "MAX_PREDICTION_BYTES", 32 << 20)),
        lease_ttl_seconds=_number(environment, "LEASE_TTL_SECONDS", 60.0),
        sweep_interval_seconds=_number(environment, "SWEEP_INTERVAL_SECONDS", 0.5),
        redispatch_after_seconds=_number(environment, "REDISPATCH_AFTER_SECONDS", 60.0),
        stop_grace_seconds=_number(environment, "STOP_GRACE_SECONDS", 30.0),
        max_attempts=int(_number(environment, "MAX_ATTEMPTS", 5)),
        checkpoint_interval_seconds=_number(environment, "CHECKPOINT_INTERVAL_SECONDS", 300.0),
        engine_timeout_seconds=_number(environment, "ENGINE_TIMEOUT_SECONDS", 600.0),
        stall_timeout_seconds=_number(environment, "STALL_TIMEOUT_SECONDS", 1800.0),
        min_free_bytes=int(_number(environment, "MIN_FREE_BYTES", 512 << 20)),
        batch_parallel=int(_number(environment, "BATCH_PARALLEL", 16)),
        batches_parallel=int(_number(environment, "BATCHES_PARALLEL", 32)),
        feedback_window_seconds=_number(environment, "FEEDBACK_WINDOW_SECONDS", 7 * 86_400.0),
        step_log_path=_optional_path(environment, "STEP_LOG"),
    )


def _path(environment: Mapping[str, str], name: str, default: Path) -> Path:
    return _optional_path(environment, name) or default


def _optional_path(environment: Mapping[str, str], name: str) -> Path | None:
    value = environment.get(name)
    return Path(value).expanduser().resolve() if value else None


def _number(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name)
    if not text:
        return default
    try:
        number = float(text)
    except ValueError:
        raise InvalidInput(f"{name} must be a number, found {text!r}") from None
    if not 0 < number < float("inf"):
        raise InvalidInput(f"{name} must be greater than 0, found {text!r}")
    return number


def _count(environment: Mapping[str, str], name: str, default: int) -> int:
    count = _number(environment, name, default)
    if count != int(count):
        raise InvalidInput(f"{name} must be a whole number, found {environment[name]!r}")
    return int(count)


def _port(environment: Mapping[str, str], name: str, default: int) -> int:
    port = _number(environment, name, default)
    if port != int(port) or port > 65_535:
        raise InvalidInput(f"{name} must be a port from 1 to 65535, found {environment[name]!r}")
    return int(port)
