"""What an operator sees of a service that runs: its metrics, and the doctor beside it."""

import httpx
from openai import OpenAI
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from app.domain.job_state import JobStatus
from tests.support.doctor import examine
from tests.support.factories import BASE_MODEL, dataset
from tests.support.fake_engine import STATS, FakeEngine
from tests.support.polling import eventually
from tests.support.service import Service

TYPES = {
    "tunesmith_jobs": "gauge",
    "tunesmith_oldest_expired_lease_seconds": "gauge",
    "tunesmith_sweeper_last_run_seconds": "gauge",
    "tunesmith_outbox_lag_seconds": "gauge",
    "tunesmith_oldest_queued_seconds": "gauge",
    "tunesmith_batches_under_way": "gauge",
    "tunesmith_batch_requests_waiting": "gauge",
    "tunesmith_storage_free_bytes": "gauge",
    "tunesmith_database_connected": "gauge",
    "tunesmith_engine_up": "gauge",
    "tunesmith_engine_outstanding_requests": "gauge",
    "tunesmith_engine_sequences": "gauge",
    "tunesmith_engine_kv_tokens": "gauge",
    "tunesmith_engine_refusals": "counter",
    "tunesmith_engine_timeouts": "counter",
    "tunesmith_engine_preemptions": "counter",
    "tunesmith_engine_prefix_hits": "counter",
    "tunesmith_engine_reused_tokens": "counter",
    "tunesmith_broker_connected": "gauge",
    "tunesmith_redispatches": "counter",
    "tunesmith_fenced_writes": "counter",
    "tunesmith_lease_steals": "counter",
    "tunesmith_repeated_steps": "counter",
}


def families(answer: httpx.Response) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(answer.text)}


def value(http: httpx.Client, name: str, **labels: str) -> float:
    family = families(http.get("/metrics"))[name]
    (found,) = [one.value for one in family.samples if one.labels == labels]
    return found


def test_anyone_may_read_them_in_the_format_of_prometheus(anonymous: httpx.Client) -> None:
    # Engines are looked at twice a second, and tell nothing before the first look.
    eventually(
        lambda: families(anonymous.get("/metrics"))["tunesmith_engine_sequences"].samples,
        what="the engine has said what it does",
    )
    answer = anonymous.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    found = families(answer)
    assert {name: family.type for name, family in found.items()} == TYPES
    assert all(family.documentation for family in found.values())
    assert [one.labels for one in found["tunesmith_jobs"].samples] == [
        {"status": status} for status in JobStatus
    ]
    for name, family in found.items():
        if family.type == "counter":
            assert [one.name for one in family.samples] == [f"{name}_total"]


def test_the_service_is_seen_to_run(anonymous: httpx.Client) -> None:
    assert value(anonymous, "tunesmith_broker_connected") == 1
    assert value(anonymous, "tunesmith_storage_free_bytes") > 1 << 20
    eventually(lambda: value(anonymous, "tunesmith_sweeper_last_run_seconds") < 2, what="it sweeps")


def test_what_engines_do_is_told(
    api: Service, anonymous: httpx.Client, fake_engine: FakeEngine
) -> None:
    def told(name: str, **labels: str) -> float:
        return value(anonymous, f"tunesmith_engine_{name}", engine=fake_engine.url, **labels)

    eventually(
        lambda: families(anonymous.get("/metrics"))["tunesmith_engine_sequences"].samples,
        what="the engine has said what it does",
    )
    for state in ("running", "waiting"):
        assert told("sequences", state=state) == STATS[state]
    for state in ("reserved", "stored"):
        assert told("kv_tokens", state=state) == STATS[f"kv_{state}_tokens"]
    assert told("kv_tokens", state="limit") == STATS["kv_tokens"]
    assert told("prefix_hits") == STATS["prefix_hits"]
    assert told("preemptions") == STATS["preempted"]


def test_a_job_is_counted_and_nothing_of_it_is_told(
    http: httpx.Client, anonymous: httpx.Client, client: OpenAI
) -> None:
    file = client.files.create(file=("train.jsonl", dataset()), purpose="fine-tune")
    before = value(anonymous, "tunesmith_jobs", status="cancelled")
    job = client.fine_tuning.jobs.create(model=BASE_MODEL, training_file=file.id)
    client.fine_tuning.jobs.cancel(job.id)
    answer = anonymous.get("/metrics")
    assert value(anonymous, "tunesmith_jobs", status="cancelled") == before + 1
    for told in (job.id, file.id, BASE_MODEL):
        assert told not in answer.text


def test_they_are_not_in_the_document_of_the_api(anonymous: httpx.Client) -> None:
    assert "/metrics" not in anonymous.get("/openapi.json").json()["paths"]


def test_the_doctor_works_beside_the_service(api: Service, anonymous: httpx.Client) -> None:
    eventually(lambda: value(anonymous, "tunesmith_outbox_lag_seconds") == 0, what="all is sent")
    report = examine(api.environment)
    # The tests' Postgres trades durability for speed, and is told off for it.
    # There is no worker either, and other tests' jobs may have waited for one for long.
    assert report.failed <= {"integrity", "content", "leases", "queue"}
    assert "integrity" not in report.failed or "fsync" in report.words["integrity"]
    for check in ("database", "schema", "broker", "storage", "storage disk", "sweep", "engine"):
        assert report.states[check] == "ok", report.words[check]
