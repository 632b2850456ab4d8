"""5: a job whose trainer always dies fails after its attempts, and no other job suffers by it."""

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil

from app.domain.job_state import JobStatus
from tests.chaos.backends import Kind
from tests.chaos.evidence import Evidence, read_steps
from tests.chaos.experiments.common import conclude, recipes
from tests.chaos.installation import Installation, Plan
from tests.chaos.lab import Lab
from tests.chaos.nemesis import Nemesis
from tests.chaos.outcome import Outcome
from tests.chaos.workload import Workload

MAX_ATTEMPTS = 3


@dataclass(frozen=True)
class PoisonSize:
    others: int = 20
    workers: int = 3


def poison(lab: Lab, kind: Kind, size: PoisonSize) -> Outcome:
    """Kill every trainer that takes a step of one job."""
    wanted = recipes(size.others + 1)
    lab.refer(wanted)
    plan = Plan(workers=size.workers, settings={"MAX_ATTEMPTS": str(MAX_ATTEMPTS)})
    with lab.installation(kind, plan) as installation:
        installation.start()
        nemesis = Nemesis(installation, lab.chance("poison"))
        workload = Workload(installation)
        ids = workload.submit_all(wanted)
        victim = nemesis.chance.choice(ids)
        ended = threading.Event()
        killer = threading.Thread(target=_kill_while, args=[nemesis, victim, ended], daemon=True)
        killer.start()
        try:
            return conclude(
                lab,
                "poison",
                workload,
                nemesis,
                within_seconds=60 + 10 * len(wanted),
                audit=lambda evidence: _audit(evidence, victim),
                may_fail={victim},
            )
        finally:
            ended.set()
            killer.join()


def _kill_while(nemesis: Nemesis, job_id: str, ended: threading.Event) -> None:
    """Kill each trainer as soon as it computes the job."""
    seen: set[int] = set()
    while not ended.wait(0.02):
        for pid in _pids_of(nemesis.installation, job_id) - seen:
            with suppress(psutil.NoSuchProcess):
                nemesis.kill_processes("trainer", [psutil.Process(pid)])
            seen.add(pid)


def _pids_of(installation: Installation, job_id: str) -> set[int]:
    return {line.pid for line in read_steps(installation.step_log) if line.job == job_id}


def _audit(evidence: Evidence, victim: str) -> Sequence[str]:
    job = evidence.jobs[victim]
    error = job.error or {}
    wrong = [
        f"{other.id}: {other.status}, {other.attempts} attempts"
        for other in evidence.jobs.values()
        if other.id != victim and other.status is not JobStatus.SUCCEEDED
    ]
    if job.status is not JobStatus.FAILED or error.get("code") != "worker_lost":
        wrong.append(f"the poisoned job is {job.status}: {error.get('code')}")
    if job.attempts != MAX_ATTEMPTS:
        wrong.append(f"the poisoned job had {job.attempts} attempts")
    if "SIGKILL" not in str(error.get("message")):
        wrong.append(f"its error does not name the signal: {error.get('message')}")
    return wrong
