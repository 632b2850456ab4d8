"""Metrics for Prometheus: do jobs move on? No key is needed, and nothing tells of a project."""

from collections.abc import Iterator, Mapping, Sequence

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.api.deps import ResourcesDep
from app.db.repositories.counters import Counter
from app.inference import EngineState
from app.inference.port import EngineWork
from app.services.inspection.vital_signs import Progress, VitalSigns, vital_signs

router = APIRouter()

_COUNTERS: dict[Counter, str] = {
    "redispatches": "Messages sent again because the one before led to no claim.",
    "fenced_writes": "Writes refused because the attempt no longer held its lease.",
    "lease_steals": "Jobs taken from a worker that had fallen silent.",
    "repeated_steps": "Training steps computed again after an attempt was lost.",
}


# What an engine counts, by its own words for it.
_COUNTED_BY_ENGINES: dict[str, tuple[str, str]] = {
    "refused": ("refusals", "Sequences for which there was no room to wait."),
    "timed_out": ("timeouts", "Sequences that have waited too long for a place."),
    "preempted": ("preemptions", "How often a sequence had to yield its place to another."),
    "prefix_hits": ("prefix_hits", "Sequences that began with what others had computed."),
    "reused_tokens": ("reused_tokens", "Tokens of prompts that did not have to be computed."),
}


# Not in the OpenAPI document: this is not for clients of the API.
@router.get("/metrics", include_in_schema=False)
def metrics(resources: ResourcesDep) -> Response:
    registry = CollectorRegistry()
    registry.register(_Collector(vital_signs(resources)))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class _Collector(Collector):
    """Says in Prometheus' words what was seen. What could not be seen is left out."""

    def __init__(self, signs: VitalSigns) -> None:
        self._signs = signs

    def collect(self) -> Iterator[Metric]:
        yield _gauge(
            "tunesmith_database_connected",
            "Whether the database answers; while it does not, what its rows tell is left out.",
            self._signs.progress is not None,
        )
        yield _gauge(
            "tunesmith_broker_connected",
            "Whether the broker answers; while it does not, queued jobs wait.",
            self._signs.is_broker_connected,
        )
        yield from _of_engines(self._signs.engines)
        if self._signs.storage_free_bytes is not None:
            yield _gauge(
                "tunesmith_storage_free_bytes",
                "Room left for datasets and checkpoints.",
                self._signs.storage_free_bytes,
            )
        if self._signs.progress is not None:
            yield from _of_progress(self._signs.progress)


def _of_engines(engines: Sequence[EngineState]) -> Iterator[Metric]:
    up = GaugeMetricFamily(
        "tunesmith_engine_up",
        "Whether an engine answered when this process last looked.",
        labels=["engine"],
    )
    outstanding = GaugeMetricFamily(
        "tunesmith_engine_outstanding_requests",
        "Requests of this process that an engine works on.",
        labels=["engine"],
    )
    for engine in engines:
        up.add_metric([engine.url], engine.is_up)
        outstanding.add_metric([engine.url], engine.outstanding)
    yield up
    yield outstanding
    yield from _of_work({engine.url: engine.work for engine in engines if engine.work})


def _of_work(works: Mapping[str, EngineWork]) -> Iterator[Metric]:
    """Tell what engines do that say so."""
    sequences = GaugeMetricFamily(
        "tunesmith_engine_sequences",
        "Sequences that an engine generates, and that wait for a place there.",
        labels=["engine", "state"],
    )
    tokens = GaugeMetricFamily(
        "tunesmith_engine_kv_tokens",
        "Tokens with keys and values that an engine has memory for, and how many of them running "
        "sequences have reserved and others can begin with.",
        labels=["engine", "state"],
    )
    for url, work in works.items():
        sequences.add_metric([url, "running"], work.running)
        sequences.add_metric([url, "waiting"], work.waiting)
        tokens.add_metric([url, "limit"], work.kv_tokens)
        tokens.add_metric([url, "reserved"], work.kv_reserved_tokens)
        tokens.add_metric([url, "stored"], work.kv_stored_tokens)
    yield sequences
    yield tokens
    for field, (name, text) in _COUNTED_BY_ENGINES.items():
        counter = CounterMetricFamily(f"tunesmith_engine_{name}", text, labels=["engine"])
        for url, work in works.items():
            counter.add_metric([url], getattr(work, field))
        yield counter


def _of_progress(progress: Progress) -> Iterator[Metric]:
    jobs = GaugeMetricFamily(
        "tunesmith_jobs", "Fine-tuning jobs in each status.", labels=["status"]
    )
    for status, count in progress.jobs.items():
        jobs.add_metric([status], count)
    yield jobs
    yield _gauge(
        "tunesmith_oldest_expired_lease_seconds",
        "How long ago the oldest lease expired whose job was not yet queued again; 0 if none.",
        progress.expired_leases.oldest_seconds,
    )
    age_seconds = progress.sweep_age_seconds
    yield _gauge(
        "tunesmith_sweeper_last_run_seconds",
        "How long ago the last sweep began; infinite before the first one.",
        float("inf") if age_seconds is None else age_seconds,
    )
    yield _gauge(
        "tunesmith_outbox_lag_seconds",
        "How long the oldest queued job without a message has been queued; 0 if none.",
        progress.undispatched.oldest_seconds,
    )
    yield _gauge(
        "tunesmith_oldest_queued_seconds",
        "How long the oldest queued job has waited for a worker, with a message or not; 0 if none.",
        progress.unclaimed.oldest_seconds,
    )
    yield _gauge(
        "tunesmith_batches_under_way", "Batches that have not ended.", progress.batches.batches
    )
    yield _gauge(
        "tunesmith_batch_requests_waiting",
        "Requests of batches under way that are not answered yet.",
        progress.batches.requests,
    )
    for name, text in _COUNTERS.items():
        yield CounterMetricFamily(f"tunesmith_{name}", text, value=progress.counters[name])


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=float(value))
