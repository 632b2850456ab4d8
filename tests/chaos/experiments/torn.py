"""7: checkpoints are damaged between two attempts. No damaged byte is ever trained on."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from app.db.repositories import jobs
from app.db.repositories.jobs import Job
from app.domain.job_state import TERMINAL, JobStatus
from app.storage import open_storage
from tests.chaos.backends import Kind
from tests.chaos.evidence import Evidence, read_steps
from tests.chaos.experiments.common import conclude, recipes
from tests.chaos.installation import Installation, Plan
from tests.chaos.lab import Lab
from tests.chaos.nemesis import Nemesis
from tests.chaos.outcome import Outcome
from tests.chaos.workload import Recipe, Workload
from tests.support.polling import eventually
from worker.training.step_log import StepLine

RECORDS, EPOCHS = 64, 3


@dataclass(frozen=True)
class TornSize:
    """`drivers` jobs are damaged at a time."""

    damages: int = 100
    drivers: int = 3
    workers: int = 3
    most_steps: int = 12


@dataclass(frozen=True)
class Damage:
    """A checkpoint that was damaged, and the step at which the job must go on."""

    job: str
    epoch: int
    next_step: int
    what: str


@dataclass
class _Tally:
    """What all drivers share."""

    wanted: int
    damages: list[Damage] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def torn(lab: Lab, kind: Kind, size: TornSize) -> Outcome:
    """Pause jobs, damage the newest checkpoint (now and then both), and resume them."""
    wanted = recipes(size.drivers, records=RECORDS, epochs=EPOCHS)
    lab.refer(wanted)
    with lab.installation(kind, Plan(workers=size.workers)) as installation:
        installation.start()
        installation.wait_for_trainers(size.workers)
        nemesis = Nemesis(installation, lab.chance("torn"))
        workload = Workload(installation)
        tally = _Tally(size.damages)
        drivers = [
            threading.Thread(
                target=_drive,
                args=[workload, wanted, lab.chance(f"torn {number}"), tally, size],
                daemon=True,
            )
            for number in range(size.drivers)
        ]
        for driver in drivers:
            driver.start()
        for driver in drivers:
            driver.join()
        nemesis.faults["damage"] = len(tally.damages)

        def audit(evidence: Evidence) -> Sequence[str]:
            return [*tally.failures, *wrong_resumes(evidence.steps, tally.damages)]

        return conclude(lab, "torn", workload, nemesis, audit=audit, may_repeat=True)


def wrong_resumes(lines: Sequence[StepLine], damages: Sequence[Damage]) -> list[str]:
    """Return the damages after which a job went on elsewhere than at the last whole state."""
    wrong = []
    for damage in damages:
        after = [
            x
            for x in lines
            if x.job == damage.job and x.epoch > damage.epoch and x.phase == "begin"
        ]
        if after and after[0].step != damage.next_step:
            wrong.append(
                f"{damage.job}: {damage.what}: went on at step {after[0].step}, "
                f"not at {damage.next_step}"
            )
    return wrong


def damage_file(directory: Path, chance: Random) -> str:
    """Flip a bit of some file below a directory, or cut it short; return what was done."""
    files = sorted(p for p in directory.rglob("*") if p.is_file() and p.stat().st_size)
    path = chance.choice(files)
    offset = chance.randrange(path.stat().st_size)
    name = path.relative_to(directory).as_posix()
    if chance.random() < 0.3:
        with path.open("r+b") as file:
            file.truncate(offset)
        return f"{name} cut at {offset}"
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << chance.randrange(8)]))
    return f"{name} flipped at {offset}"


def _drive(
    workload: Workload, wanted: Sequence[Recipe], chance: Random, tally: _Tally, size: TornSize
) -> None:
    """Run one job after the other until there is damage enough."""
    try:
        while len(tally.damages) < tally.wanted:
            job_id = workload.submit(chance.choice(wanted))
            while len(tally.damages) < tally.wanted:
                if not _pause(workload, job_id, chance, size):
                    break
                damage = _damage(workload.installation, job_id, chance)
                if damage is not None:
                    tally.damages.append(damage)
                workload.act(job_id, "resume")
    except Exception as error:  # A thread's end must be seen.
        tally.failures.append(f"a driver ended: {error!r}")


def _pause(workload: Workload, job_id: str, chance: Random, size: TornSize) -> bool:
    """Let a job compute a few steps and pause it; False when it has ended before."""
    installation = workload.installation
    enough = _count_ends(installation, job_id) + chance.randint(1, size.most_steps)

    def is_due() -> bool:
        return (
            _count_ends(installation, job_id) >= enough
            or _job(installation, job_id).status in TERMINAL
        )

    eventually(is_due, what=f"{job_id} computes", within_seconds=120)
    workload.act(job_id, "pause")

    def is_at_rest() -> bool:
        return _job(installation, job_id).status in (JobStatus.PAUSED, *TERMINAL)

    eventually(is_at_rest, what=f"{job_id} is paused", within_seconds=60)
    return _job(installation, job_id).status is JobStatus.PAUSED


def _damage(installation: Installation, job_id: str, chance: Random) -> Damage | None:
    """Damage the newest checkpoint of a paused job, and at times the one before as well."""
    job = _job(installation, job_id)
    if job.resume_prefix is None:
        return None
    storage = open_storage(installation.service.settings.storage_url)
    what = damage_file(storage.directory(job.resume_prefix), chance)
    next_step = (job.fallback_step or 0) + 1
    if job.fallback_prefix is not None and chance.random() < 0.15:
        what += " and fallback " + damage_file(storage.directory(job.fallback_prefix), chance)
        next_step = 1
    return Damage(job_id, job.lease_epoch, next_step, what)


def _job(installation: Installation, job_id: str) -> Job:
    with installation.database() as database, database.read() as connection:
        job = jobs.find(connection, job_id)
    assert job is not None
    return job


def _count_ends(installation: Installation, job_id: str) -> int:
    return sum(x.job == job_id and x.phase == "end" for x in read_steps(installation.step_log))
