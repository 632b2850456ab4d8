"""14: jobs are cancelled at random moments. Each ends once, and nobody computes it any longer."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import httpx

from app.domain.job_state import JobStatus
from tests.chaos.backends import Kind
from tests.chaos.evidence import Evidence
from tests.chaos.experiments.common import conclude, finish, recipes
from tests.chaos.installation import Plan
from tests.chaos.lab import Lab
from tests.chaos.nemesis import Nemesis
from tests.chaos.outcome import Outcome
from tests.chaos.workload import Recipe, Workload
from worker.training.step_log import StepLine

SILENT_SECONDS = 5.0
BATCH = 4


@dataclass(frozen=True)
class CancelsSize:
    jobs: int = 100
    workers: int = 2
    # About as long as a job lives, waiting included: a few cancels come too late.
    latest_seconds: float = 4.0


@dataclass
class _Answers:
    """What cancelling was answered with, and when it was granted."""

    odd: list[str] = field(default_factory=list)
    granted: dict[str, float] = field(default_factory=dict)


def cancels(lab: Lab, kind: Kind, size: CancelsSize) -> Outcome:
    """Submit jobs a few at a time and cancel each at some moment of its life."""
    wanted = recipes(size.jobs)
    lab.refer(wanted)
    with lab.installation(kind, Plan(workers=size.workers)) as installation:
        installation.start()
        installation.wait_for_trainers(size.workers)
        nemesis = Nemesis(installation, lab.chance("cancels"))
        workload = Workload(installation)
        answers = _Answers()
        for start in range(0, size.jobs, BATCH):
            _cancel_batch(workload, nemesis, answers, wanted[start : start + BATCH], size)
        finish(installation, 60)
        # The workers are well: a further job succeeds.
        last = workload.submit(wanted[0])

        def audit(evidence: Evidence) -> Sequence[str]:
            return [
                *answers.odd,
                *_wrong_ends(evidence, answers.granted),
                *computed_after(evidence.steps, answers.granted, SILENT_SECONDS),
                *([] if evidence.jobs[last].status is JobStatus.SUCCEEDED else ["no job after"]),
            ]

        return conclude(lab, "cancels", workload, nemesis, audit=audit)


def computed_after(
    lines: Sequence[StepLine], granted: Mapping[str, float], seconds: float
) -> list[str]:
    """Return the cancelled jobs of which a step began so long after that."""
    return sorted(
        {
            f"{line.job}: computed {line.time - granted[line.job]:.1f} s after its cancellation"
            for line in lines
            if line.phase == "begin" and line.time > granted.get(line.job, math.inf) + seconds
        }
    )


def _cancel_batch(
    workload: Workload,
    nemesis: Nemesis,
    answers: _Answers,
    wanted: Sequence[Recipe],
    size: CancelsSize,
) -> None:
    timers = []
    for recipe in wanted:
        moment = nemesis.chance.uniform(0, size.latest_seconds)
        cancel = partial(_cancel, workload, nemesis, answers, workload.submit(recipe))
        timers.append(nemesis.later(moment, cancel))
    for timer in timers:
        timer.join()


def _cancel(workload: Workload, nemesis: Nemesis, answers: _Answers, job_id: str) -> None:
    try:
        response = workload.act(job_id, "cancel")
    except httpx.TransportError as error:
        answers.odd.append(f"{job_id}: no answer to cancel: {error!r}")
        return
    if response.status_code == 200:
        answers.granted[job_id] = time.monotonic()
        nemesis.faults["cancel"] += 1
    elif response.status_code != 400:  # It had ended already.
        answers.odd.append(f"{job_id}: cancel was answered with {response.status_code}")


def _wrong_ends(evidence: Evidence, granted: Mapping[str, float]) -> list[str]:
    """Return the jobs that ended otherwise than their answer said."""
    return [
        f"{job.id}: {job.status}, cancel granted: {job.id in granted}"
        for job in evidence.jobs.values()
        if job.status is not (JobStatus.CANCELLED if job.id in granted else JobStatus.SUCCEEDED)
    ]
