"""6: disks run full. Jobs wait, uploads are refused, nothing fails, all goes on by itself."""

import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from app.db.database import open_database
from app.db.repositories import jobs
from app.domain.job_state import TERMINAL, JobStatus
from tests.chaos.backends import Kind
from tests.chaos.evidence import Evidence
from tests.chaos.experiments.common import conclude, recipes
from tests.chaos.installation import Installation, Plan
from tests.chaos.lab import Lab
from tests.chaos.nemesis import Nemesis
from tests.chaos.outcome import Outcome
from tests.chaos.workload import Workload
from tests.support.jobs import support_desk
from tests.support.polling import eventually

_CHUNK = b"\0" * 65_536


@dataclass(frozen=True)
class DisksSize:
    jobs: int = 3
    requests: int = 20


class CannotMount(Exception):
    """No file system of our own can be had here."""


def full_storage(lab: Lab, kind: Kind, size: DisksSize) -> Outcome:
    """Fill the disk of checkpoints and datasets while a job trains, then free it."""
    wanted = recipes(size.jobs)
    lab.refer(wanted)
    try:
        with small_disk(lab.root / "storage-disk", mebibytes=256) as disk:
            return _fill_storage(lab, kind, size, disk)
    except CannotMount:
        return _skipped("full storage", kind)


def full_database(lab: Lab, kind: Kind, size: DisksSize) -> Outcome:
    """Fill the disk of the SQLite database while requests come in, then free it."""
    lab.refer(recipes(1))
    try:
        with small_disk(lab.root / "database-disk", mebibytes=8) as disk:
            return _fill_database(lab, kind, size, disk)
    except CannotMount:
        return _skipped("full database", kind)


@contextmanager
def small_disk(directory: Path, mebibytes: int) -> Iterator[Path]:
    """Mount a file system of its own on a directory. Raises: CannotMount."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(directory)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise CannotMount from error
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=False, capture_output=True)


def fill(disk: Path) -> Path:
    """Leave no byte free; removing the returned file gives all of them back."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file:
        for chunk in (_CHUNK, b"\0"):
            with suppress(OSError):
                while True:
                    file.write(chunk)
    return filler


def _fill_storage(lab: Lab, kind: Kind, size: DisksSize, disk: Path) -> Outcome:
    settings = {"STORAGE_URL": f"file://{disk}/storage", "MIN_FREE_BYTES": str(32 << 20)}
    with lab.installation(kind, Plan(workers=1, settings=settings)) as installation:
        installation.start()
        installation.wait_for_trainers(1)
        nemesis = Nemesis(installation, lab.chance("full storage"))
        workload = Workload(installation)
        first, *_ = workload.submit_all(recipes(size.jobs))
        eventually(nemesis.wait_for_work, what="a job runs", within_seconds=60)
        filler = fill(disk)
        nemesis.faults["fill"] += 1
        wrong = []
        with suppress(AssertionError):
            eventually(
                lambda: _status(installation, first) in (JobStatus.QUEUED, *TERMINAL),
                what="the job is given back",
                within_seconds=30,
            )
        seen = _status(installation, first)
        if seen in TERMINAL:
            wrong.append(f"{first} is {seen} on a full disk")
        uploads = Counter(_upload(installation) for _ in range(size.requests))
        wrong += [f"uploads: {n} times {a}" for a, n in uploads.items() if a != _REFUSED]
        filler.unlink()

        def audit(evidence: Evidence) -> Sequence[str]:
            ended = [
                f"{job.id}: {job.status}, {job.attempts} attempts"
                for job in evidence.jobs.values()
                if job.status is not JobStatus.SUCCEEDED or job.attempts != 1
            ]
            return [*wrong, *ended]

        figures: dict[str, object] = {"while full": str(seen), "uploads": str(dict(uploads))}
        return conclude(lab, "full storage", workload, nemesis, audit=audit, figures=figures)


def _fill_database(lab: Lab, kind: Kind, size: DisksSize, disk: Path) -> Outcome:
    settings = {"DATABASE_URL": f"sqlite:///{disk}/tunesmith.db"}
    with lab.installation(kind, Plan(workers=1, settings=settings)) as installation:
        installation.start()
        nemesis = Nemesis(installation, lab.chance("full database"))
        workload = Workload(installation)
        workload.submit_all(recipes(1))
        body = workload.request(recipes(1)[0])
        eventually(nemesis.wait_for_work, what="a job runs", within_seconds=60)
        filler = fill(disk)
        nemesis.faults["fill"] += 1
        # A worker that cannot renew its lease must not go on; one that could finish first, may.
        eventually(lambda: not nemesis.wait_for_work(1), what="nothing is computed")
        answers = Counter(_create(installation, workload, body) for _ in range(size.requests * 10))
        is_refused = any(status == 503 for status, _ in answers)
        wrong = [f"POST: {n} times {a}" for a, n in answers.items() if a[0] not in (200, 503)]
        wrong += [] if is_refused else ["no request met the full disk"]
        filler.unlink()
        wrong += _integrity(installation)
        workload.submit_all(recipes(size.jobs))
        return conclude(
            lab,
            "full database",
            workload,
            nemesis,
            within_seconds=120 + 5 * answers[(200, None)],
            audit=lambda _: wrong,
            # Checkpoints went to the other disk, and no row could tell of them.
            may_repeat=True,
            figures={"answers": str(dict(answers))},
        )


_REFUSED = (503, "storage_full")


def _upload(installation: Installation) -> tuple[int, str | None]:
    service = installation.service
    with service.http(service.key) as client:
        return _told(
            client.post(
                "/v1/files",
                data={"purpose": "fine-tune"},
                files={"file": ("train.jsonl", support_desk("train", 96))},
            )
        )


def _create(
    installation: Installation, workload: Workload, body: dict[str, Any]
) -> tuple[int, str | None]:
    service = installation.service
    with service.http(service.key) as client:
        response = client.post("/v1/fine_tuning/jobs", json=body)
    if response.status_code == 200:
        workload.accepted[response.json()["id"]] = 0.0
    return _told(response)


def _told(response: httpx.Response) -> tuple[int, str | None]:
    """Return the status and, of an error, its code."""
    if response.status_code == 200:
        return 200, None
    return response.status_code, response.json()["error"]["code"]


def _integrity(installation: Installation) -> list[str]:
    database = open_database(installation.service.settings.database_url)
    with closing(database.engine.raw_connection()) as connection:
        found = [row[0] for row in connection.cursor().execute("PRAGMA integrity_check")]
    database.engine.dispose()
    return [] if found == ["ok"] else [f"integrity_check: {found}"]


def _status(installation: Installation, job_id: str) -> JobStatus:
    with installation.database() as database, database.read() as connection:
        job = jobs.find(connection, job_id)
    assert job is not None
    return job.status


def _skipped(name: str, kind: Kind) -> Outcome:
    return Outcome(name, kind, Counter(), skipped="cannot mount")
